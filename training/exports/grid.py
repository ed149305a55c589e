"""The whole numbers that weights are rounded to, and how 32-bit words hold them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from engines.errors import InvalidRequest

if TYPE_CHECKING:
    from torch import Tensor

WORD = 32
SHRINKS = 20
"""Smaller ranges that are tried for each scale: down to a half of the largest weight."""
NEAR = 2**16
"""Weights that are looked at together: as many as stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Numbers of `bits` bits, a scale and a zero for each group: weight = scale * (number - zero)."""

    scale: "Tensor"
    """(rows, groups). Below 0 in symmetric grids whose largest weights are positive: they have a number more there."""
    zero: "Tensor"
    """(rows, groups), whole numbers."""
    bits: int
    group: int
    """Weights of a row that share a scale."""

    def round(self, weight: "Tensor", groups: "Tensor") -> "Tensor":
        """Numbers for `weight` (rows, columns); `groups` (columns,) says of each column which group it is in."""
        scale, zero = self.scale[:, groups], self.zero[:, groups]
        return ((weight / scale).round() + zero).clamp(0, 2**self.bits - 1)

    def meant(self, numbers: "Tensor", groups: "Tensor") -> "Tensor":
        return self.scale[:, groups] * (numbers - self.zero[:, groups])


def fit_grid(
    weight: "Tensor", importance: "Tensor", *, bits: int, group: int, symmetric: bool, shrinks: int = SHRINKS
) -> Grid:
    """The grid that changes `weight` (rows, columns) least, where an error in a column counts by its `importance`
    (columns,). Symmetric: the zero is in the middle, with one number more below it than above, and a scale of either
    sign. With 1 for `shrinks`, each group's range is that of its weights.
    """
    import torch

    columns = weight.shape[1]
    counts = importance.reshape(1, columns // group, group)
    parts = [
        _fit(rows.reshape(len(rows), -1, group), counts, 2**bits - 1, symmetric=symmetric, shrinks=shrinks)
        for rows in weight.split(max(1, NEAR // columns))
    ]
    scale, zero = (torch.cat(each) for each in zip(*parts, strict=True))
    return Grid(scale, zero, bits, group)


def _fit(parts: "Tensor", counts: "Tensor", most: int, *, symmetric: bool, shrinks: int) -> tuple["Tensor", "Tensor"]:
    """Scales and zeros (rows, groups) of `parts` (rows, groups, weights)."""
    import torch

    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    best, change = torch.full_like(low, torch.inf), torch.empty_like(parts)
    scale, zero = torch.ones_like(low), torch.zeros_like(low)
    for step, sign in product(range(shrinks), (1, -1) if symmetric else (1,)):
        shrunk = 1 - step / (2 * shrinks)
        tried = sign * ((high - low) * shrunk / most).clamp(min=1e-8)
        middle = torch.full_like(tried, (most + 1) / 2)
        if not symmetric:
            middle = (-low * shrunk / tried).round().clamp(0, most)
        torch.div(parts, tried[..., None], out=change).round_().add_(middle[..., None]).clamp_(0, most)
        change.sub_(middle[..., None]).mul_(tried[..., None]).sub_(parts).square_().mul_(counts)
        error = change.sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, tried, scale), torch.where(better, middle, zero)
    return scale, zero


def saved(grid: Grid) -> Grid:
    """With scales as they are saved, in float16."""
    scale = grid.scale.half().float()
    return replace(grid, scale=scale.abs().clamp(min=2**-24).copysign(scale))


def pack(numbers: "Tensor", bits: int, order: Iterable[int] | None = None) -> "Tensor":
    """Words (rows, columns * bits / 32) of 32 bits, the first of each in the lowest bits, or in the given order."""
    import torch

    each = WORD // bits
    parts = numbers.to(torch.int64).reshape(len(numbers), -1, each)
    places = torch.tensor([*(range(each) if order is None else order)], device=numbers.device)
    words = (parts[..., places] << (torch.arange(each, device=numbers.device) * bits)).sum(-1)
    return torch.where(words >= 1 << (WORD - 1), words - (1 << WORD), words).to(torch.int32)


def groups_of(columns: int, group: int) -> "Tensor":
    """(columns,): the group of each."""
    import torch

    return torch.arange(columns) // group


def check_group_size(size: int, widths: Iterable[int]) -> None:
    """Raises InvalidRequest where `size` does not divide all `widths`, the inputs of the layers to quantise."""
    import math

    common = math.gcd(*widths)
    if size != -1 and (size == 0 or common % size):
        fitting = [each for each in (16, 32, 64, 128, 256, 512, 1024) if common % each == 0]
        named = ", ".join(map(str, [*fitting, -1]))
        raise InvalidRequest(f"{size} does not divide the inputs of all layers; these do: {named}", param="group_size")
