"""Means of what is seen from one log to the next."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Averages:
    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._weights: dict[str, float] = defaultdict(float)

    def add(self, seen: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Name -> a sum, and what it is to be divided by in the end: scalars, read from the device all at once."""
        if not seen:
            return
        given = [each.detach().float() for pair in seen.values() for each in pair]
        device = next((each.device for each in given if each.device.type != "cpu"), torch.device("cpu"))
        numbers = torch.stack([each.to(device) for each in given]).tolist()
        for name, total, weight in zip(seen, numbers[::2], numbers[1::2], strict=True):
            self._sums[name] += total
            self._weights[name] += weight

    def taken(self, prefix: str = "") -> dict[str, float]:
        """The means, by name; they begin anew."""
        means = {f"{prefix}{name}": self._sums[name] / weight for name, weight in self._weights.items() if weight}
        self._sums.clear()
        self._weights.clear()
        return means


def over_processes(means: Mapping[str, float], accelerator: Any) -> dict[str, float]:
    """The means of all processes, of which each has the same names."""
    if not means:
        return {}
    together = torch.tensor([*means.values()], device=accelerator.device)
    return dict(zip(means, accelerator.reduce(together, reduction="mean").tolist(), strict=True))
