"""Layers that learn in turns: LISA's part in the trainer's loop."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from transformers import TrainerCallback


class Turns(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    def __init__(self, layers: Sequence[nn.Module], active: Callable[[int], frozenset[int]]) -> None:
        """`active`: step -> the numbers of the layers that learn in the one after it."""
        self._weights = [[weight for weight in layer.parameters() if weight.requires_grad] for layer in layers]
        self._active = active
        self._now: frozenset[int] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        active = self._active(state.global_step)
        if active == self._now:
            return
        self._now = active
        for number, weights in enumerate(self._weights):
            for weight in weights:
                weight.requires_grad_(number in active)
                if number not in active:
                    optimizer.state.pop(weight, None)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for weights in self._weights:
            for weight in weights:
                weight.requires_grad_(True)
