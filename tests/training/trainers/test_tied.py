"""Gradients of embeddings that are the output head, too."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.engines.pt.tiny import CONFIGS
from training.trainers.tied import add_in_place

IDS = torch.tensor([[1, 2, 3, 2, 2], [7, 1, 1, 9, 3]])


def model_with(*, tied: bool) -> Any:
    torch.manual_seed(0)
    config = CONFIGS["llama"]()
    config.tie_word_embeddings = tied
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def gradient(model: Any, *, batches: int = 2) -> Tensor:
    for _ in range(batches):
        model(input_ids=IDS, labels=IDS).loss.backward()
    found: Tensor = model.get_input_embeddings().weight.grad
    return found


def test_they_are_what_torch_adds_up_itself() -> None:
    one, other = model_with(tied=True), model_with(tied=True)
    add_in_place(one)
    assert one.get_input_embeddings().sparse
    torch.testing.assert_close(gradient(one), gradient(other), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("learns", [False, True])
def test_others_are_left_as_they_are(learns: bool) -> None:
    model = model_with(tied=not learns)
    model.get_input_embeddings().weight.requires_grad_(learns)
    add_in_place(model)
    assert not model.get_input_embeddings().sparse
