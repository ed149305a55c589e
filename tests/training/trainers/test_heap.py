"""What the C library is asked to give back, and when."""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engines.pt.tiny import CONFIGS
from training.trainers import heap

IDS = torch.tensor([[1, 2, 3]])


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_config(CONFIGS["llama"]())


def library(monkeypatch: pytest.MonkeyPatch, **functions: Callable[[int], None]) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(**functions))


def test_a_forward_pass_that_learns_gives_back_once_before_its_logits(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    library(monkeypatch, malloc_trim=lambda kept: done.append(f"all but {kept} bytes"))
    model.model.register_forward_hook(lambda *_: done.append("layers"))
    heap.give_back_before_logits(model)
    model.lm_head.register_forward_hook(lambda *_: done.append("logits"))

    model(input_ids=IDS)
    assert done == ["layers", "all but 0 bytes", "logits"]
    with torch.no_grad():
        model(input_ids=IDS)
    assert done[3:] == ["layers", "logits"]


def test_another_c_library_is_asked_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch)

    heap.give_back_before_logits(model)

    assert not model.lm_head._forward_pre_hooks
