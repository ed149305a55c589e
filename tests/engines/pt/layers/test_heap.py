"""What the C library is asked while a model is loaded, and what goes back to the system."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.errors import UnsupportedModel
from engines.pt.layers import heap
from engines.pt.layers.heap import APART, LARGEST, MMAP_THRESHOLD, TRIM_THRESHOLD, large_tensors_apart
from engines.pt.runner import ModelRunner
from tests.engines.pt.driving import settings

AFTERWARDS = [(MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, 2 * LARGEST), "trim"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    asked: list[Any] = []
    library = SimpleNamespace(
        mallopt=lambda *option: asked.append(option), malloc_trim=lambda kept: asked.append("trim")
    )
    monkeypatch.setattr(heap, "ctypes", SimpleNamespace(CDLL=lambda name: library))
    return asked


def test_large_tensors_go_back_at_once_while_a_model_is_loaded(asked: list[Any], folder: Callable[[str], Path]) -> None:
    ModelRunner(settings(folder("llama")))
    assert asked == [(MMAP_THRESHOLD, APART), *AFTERWARDS]


def test_they_stay_in_the_heap_afterwards_even_if_there_is_no_model(asked: list[Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel):
        ModelRunner(settings(tmp_path / "none"))
    assert asked[1:] == AFTERWARDS


def test_another_c_library_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    with large_tensors_apart():
        pass
