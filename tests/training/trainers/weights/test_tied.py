"""Gradients of embeddings that are the output head, too."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.engines.pt.tiny import CONFIGS
from training.trainers.weights.tied import add_in_place

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
    torch.testing.assert_close(gradient(one), gradient(other), atol=1e-6, rtol=1e-5)


def test_those_of_the_embeddings_are_added_to_that_of_the_head() -> None:
    model = model_with(tied=True)
    add_in_place(model)
    heads: list[Tensor] = []
    model.lm_head.weight.register_post_accumulate_grad_hook(lambda weight: heads.append(weight.grad.clone()))
    model.lm_head.weight.register_post_accumulate_grad_hook(lambda weight: heads.append(weight.grad))
    found = gradient(model, batches=1)
    assert heads[1] is found
    changed = (found != heads[0]).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(set(IDS.flatten().tolist()))


def test_without_a_head_in_the_loss_they_are_the_embeddings() -> None:
    one, other = model_with(tied=True), model_with(tied=True)
    add_in_place(one)
    for model in (one, other):
        model.model(input_ids=IDS).last_hidden_state.square().sum().backward()
    torch.testing.assert_close(one.lm_head.weight.grad, other.lm_head.weight.grad)


def test_the_weight_stays_what_the_embeddings_have() -> None:
    model = model_with(tied=True)
    add_in_place(model)
    with pytest.raises(IndexError):
        model(input_ids=IDS + 10_000)
    assert model.get_input_embeddings().weight is model.lm_head.weight


def test_a_copy_of_the_model_has_its_own() -> None:
    model = model_with(tied=True)
    add_in_place(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert gradient(other, batches=1).any()
    assert model.lm_head.weight.grad is None
    assert other.get_input_embeddings().weight is other.lm_head.weight


@pytest.mark.parametrize("learns", [False, True])
def test_others_are_left_as_they_are(learns: bool) -> None:
    model = model_with(tied=not learns)
    model.get_input_embeddings().weight.requires_grad_(learns)
    add_in_place(model)
    assert not model.get_input_embeddings()._forward_pre_hooks
