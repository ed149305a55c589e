"""Rounding by what is known of the inputs changes the outputs less than rounding to the nearest."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engines.errors import UnsupportedModel
from training.exports.awq import best_scale
from training.exports.blocks import Inputs
from training.exports.grid import Grid, fit_grid, groups_of, pack, saved
from training.exports.rounding import beside_others, rounded

GROUP = 16


def some_inputs(columns: int = 64, count: int = 512) -> Tensor:
    """Inputs of which some are much larger than others, and all hang together."""
    torch.manual_seed(0)
    return torch.randn(count, columns) @ torch.randn(columns, columns) * torch.logspace(0, 1.5, columns)


def inputs_of(x: Tensor) -> Inputs:
    return Inputs(x.T @ x, x.abs().sum(0), len(x))


def error(meant: Tensor, weight: Tensor, x: Tensor) -> float:
    return (x @ (meant - weight).T).square().mean().item()


def nearest(weight: Tensor, *, symmetric: bool) -> Tensor:
    groups = groups_of(weight.shape[1], GROUP)
    grid = fit_grid(weight, torch.ones(weight.shape[1]), bits=4, group=GROUP, symmetric=symmetric, shrinks=1)
    return grid.meant(grid.round(weight, groups), groups)


def test_gptq_leaves_less_than_half_of_the_error() -> None:
    x, weight = some_inputs(), torch.randn(32, 64)
    numbers, grid = rounded(weight, inputs_of(x), bits=4, group=GROUP)
    assert numbers.min() >= 0 and numbers.max() <= 15 and (numbers == numbers.round()).all()
    meant = grid.meant(numbers, groups_of(64, GROUP))
    assert error(meant, weight, x) < error(nearest(weight, symmetric=True), weight, x) / 2


def test_columns_that_no_input_reaches_do_no_harm() -> None:
    x, weight = some_inputs(), torch.randn(32, 64)
    x[:, 7] = 0
    numbers, grid = rounded(weight, inputs_of(x), bits=4, group=GROUP)
    assert torch.isfinite(grid.meant(numbers, groups_of(64, GROUP))).all()


def test_awq_scales_what_is_large() -> None:
    x, weight = some_inputs(), torch.randn(32, 64)
    scale = best_scale([weight], inputs_of(x), group=GROUP)
    meant = nearest(weight * scale, symmetric=False) / scale
    assert error(meant, weight, x) < error(nearest(weight, symmetric=False), weight, x)
    assert scale[48:].mean() > scale[:16].mean()


def test_words_hold_numbers_from_the_lowest_bits_on() -> None:
    numbers = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 15]])
    assert pack(numbers, 4).tolist() == [[0xF7654321 - (1 << 32)]]
    assert pack(numbers, 4, (0, 2, 4, 6, 1, 3, 5, 7)).tolist() == [[0xF6427531 - (1 << 32)]]
    assert pack(torch.tensor([[1, 2, 3, 4]]), 8).tolist() == [[0x04030201]]


def test_a_grid_gives_back_what_lies_on_it() -> None:
    weight = torch.arange(-8, 8).float().repeat(2, 1) / 4
    grid = fit_grid(weight, torch.ones(16), bits=4, group=16, symmetric=False)
    assert isinstance(grid, Grid)
    torch.testing.assert_close(grid.meant(grid.round(weight, groups_of(16, 16)), groups_of(16, 16)), weight)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_symmetric_grid_reaches_the_largest_weight_whatever_its_sign(sign: int) -> None:
    weight, groups = sign * torch.arange(-8, 8).float().repeat(2, 1) / 4, groups_of(16, 16)
    grid = saved(fit_grid(weight, torch.ones(16), bits=4, group=16, symmetric=True, shrinks=16))
    assert (grid.zero == 8).all()
    torch.testing.assert_close(grid.meant(grid.round(weight, groups), groups), weight)


def test_scales_suit_the_numbers_best() -> None:
    x, weight = some_inputs(), torch.randn(32, 64)
    numbers, grid = rounded(weight, inputs_of(x), bits=4, group=GROUP)
    groups = groups_of(64, GROUP)
    found = error(grid.meant(numbers, groups), weight, x)
    for factor in (0.97, 1.03):
        for group in range(64 // GROUP):
            other = grid.scale.clone()
            other[:, group] *= factor
            assert error(replace(grid, scale=other).meant(numbers, groups), weight, x) > found


@pytest.mark.parametrize("symmetric", [True, False])
def test_no_other_number_of_a_column_costs_less_than_the_one_that_was_found_last(symmetric: bool) -> None:
    x, weight = some_inputs(), torch.randn(32, 64)
    known, groups = inputs_of(x), groups_of(64, GROUP)
    hessian = known.gram / known.count
    grid = saved(fit_grid(weight, hessian.diagonal(), bits=4, group=GROUP, symmetric=symmetric))
    numbers = grid.round(weight, groups)
    found = beside_others(weight, hessian, numbers, grid)
    assert error(grid.meant(found, groups), weight, x) < error(grid.meant(numbers, groups), weight, x)
    for step in (-1, 1):
        other = found.clone()
        other[:, -1] = (other[:, -1] + step).clamp(0, 15)
        costs = [(x @ (grid.meant(each, groups) - weight).T).square().mean(0) for each in (found, other)]
        assert (costs[0] <= costs[1] * (1 + 1e-5)).all()


def test_inputs_that_hang_together_wholly_are_rounded_and_those_that_are_no_numbers_refused() -> None:
    x, weight = some_inputs(count=8), torch.randn(32, 64)
    numbers, grid = rounded(weight, inputs_of(x), bits=4, group=GROUP)
    meant = grid.meant(numbers, groups_of(64, GROUP))
    assert error(meant, weight, x) < error(nearest(weight, symmetric=True), weight, x) / 2
    x[3, 5] = torch.nan
    with pytest.raises(UnsupportedModel, match="cannot be told in numbers"):
        rounded(weight, inputs_of(x), bits=4, group=GROUP)
