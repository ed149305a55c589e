"""What the C library is asked to give back, and when."""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engines.pt.tiny import CONFIGS
from training.trainers.weights import heap

IDS = torch.tensor([[1, 2, 3]])


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_config(CONFIGS["llama"]())


def library(monkeypatch: pytest.MonkeyPatch, **functions: Callable[[int], int]) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(**functions))


@pytest.fixture
def done(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []

    def trim(kept: int) -> int:
        done.append(f"all but {kept} bytes")
        return 1

    library(monkeypatch, malloc_trim=trim)
    model.model.norm.register_forward_hook(lambda *_: done.append("layers"))
    heap.give_back(model)
    model.lm_head.register_forward_hook(lambda *_: done.append("logits"))
    return done


def test_a_forward_pass_that_learns_gives_back_once_before_its_logits(model: Any, done: list[str]) -> None:
    model(input_ids=IDS)
    assert done == ["layers", "all but 0 bytes", "logits"]
    with torch.no_grad():
        model(input_ids=IDS)
    assert done[3:] == ["layers", "logits"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_backward_pass_gives_back_after_each_quarter_of_the_gradients(
    model: Any, done: list[str], checkpointing: bool
) -> None:
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    loss = model(input_ids=IDS, use_cache=False).logits.sum()
    done.clear()
    loss.backward()
    assert done == ["all but 0 bytes"] * 4


def test_another_c_library_is_asked_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch)

    heap.give_back(model)

    assert not model.lm_head._forward_pre_hooks
