"""Samples in one row do not see one another, and padding is not seen at all."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import AutoModelForCausalLM

from training.collate import Packed, Padded
from training.data.encode import IGNORED
from training.loss import answer_loss

SAMPLES = [
    {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, 6, 7, 8]},
    {"input_ids": [9, 10, 11], "labels": [9, 10, 11]},
    {"input_ids": [12, 13, 14, 15, 16], "labels": [IGNORED, IGNORED, IGNORED, 15, 16]},
]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(tiny: Path, request: pytest.FixtureRequest) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32, attn_implementation=request.param)


def alone(model: torch.nn.Module) -> float:
    """The summed loss of the samples, each in a batch of its own."""
    total = 0.0
    for sample in SAMPLES:
        inputs = {name: torch.tensor([values]) for name, values in sample.items()}
        total += answer_loss(model, inputs, 1).loss.item()
    return total


def test_packed_samples_do_not_see_one_another(model: torch.nn.Module) -> None:
    rows = [
        {name: SAMPLES[0][name] + SAMPLES[1][name] for name in SAMPLES[0]} | {"seq_lengths": [4, 3]},
        {**SAMPLES[2], "seq_lengths": [5]},
    ]
    batch = Packed()(rows)

    assert batch["input_ids"].shape == (1, 12)
    assert answer_loss(model, batch, 1).loss.item() == pytest.approx(alone(model), abs=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_seen(model: torch.nn.Module, side: Literal["left", "right"]) -> None:
    batch = Padded(pad_token_id=0, side=side)(SAMPLES)

    assert batch["input_ids"].shape == (3, 5)
    assert answer_loss(model, batch, 1).loss.item() == pytest.approx(alone(model), abs=1e-4)
