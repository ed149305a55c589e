"""Linear layers kept as integers, against the weights that these stand for, multiplied in float32."""

import ctypes
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from engines.checkpoint.integers import CENTRE, MOST, Integers, integers, integers_behind
from engines.pt.layers.quantized_linear import QuantizedLinear
from tests.engines.pt.machines import LESSER_MACHINES as OTHERS
from tests.engines.pt.machines import library_with

LESSER_MACHINES = {"kernel without AMX": ("-mno-amx-bf16",), **OTHERS}
ROWS = (1, 2, 3, 4, 5, 7, 13, 16, 17, 32, 33, 49, 66, 257)
"""Few, which are multiplied from registers, and many; with tiles of all heights, and two blocks of rows."""
SIZES = ((64, 33, 32), (576, 70, 576), (320, 20, 64), (48, 40, 16), (24, 5, 8))
"""Inputs, outputs, inputs of a group."""


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["this machine", *LESSER_MACHINES], scope="module")
def machine(request: pytest.FixtureRequest, library: ctypes.CDLL) -> ctypes.CDLL:
    """The kernels for this machine, and for lesser ones of its kind."""
    if request.param == "this machine":
        return library
    return library_with(*LESSER_MACHINES[request.param])


def random_integers(bits: int, inputs: int, outputs: int, group: int, *, zeros: bool) -> Integers:
    least, most = MOST[bits]
    codes = torch.randint(least, most + 1, (outputs, inputs), dtype=torch.int32)
    scales = torch.rand(outputs, inputs // group) * 0.01 + 0.001
    own = torch.randint(0, 16, scales.shape) if zeros else torch.full(scales.shape, CENTRE[bits])
    found = integers(bits, codes - CENTRE[bits], scales, own - CENTRE[bits])
    assert found is not None
    assert (found.zeros is not None) == zeros
    expected = (codes.unflatten(1, (-1, group)) - own[..., None]) * scales[..., None]
    assert torch.equal(found.weights(), expected.flatten(1))
    return found


@pytest.mark.parametrize(
    ("bits", "zeros", "offsets"),
    [(4, False, False), (4, True, False), (8, False, False), (4, False, True), (4, True, True), (8, False, True)],
)
@pytest.mark.parametrize("dots", [False, True])
def test_they_give_what_their_weights_give_and_each_row_what_it_gives_alone(
    machine: ctypes.CDLL, bits: int, zeros: bool, offsets: bool, dots: bool
) -> None:
    if dots and not machine.has_quantized_dots():
        pytest.skip("this machine multiplies no bfloat16 values")
    for (inputs, outputs, group), bias in itertools.product(SIZES, (False, True)):
        kept = random_integers(bits, inputs, outputs, group, zeros=zeros)
        if offsets:
            kept = replace(kept, offsets=torch.randn(kept.scales.shape))
        plain = nn.Linear(inputs, outputs, bias=bias)
        layer = QuantizedLinear(plain, kept, machine, dots=dots, wide=True)
        x = torch.randn(max(ROWS), inputs)
        x = x.bfloat16().float() if dots else x
        shift = 0 if plain.bias is None else plain.bias.detach().double()
        meant = x.double() @ kept.weights().double().T + shift
        alone = torch.cat([layer(row[None]) for row in x])
        torch.testing.assert_close(alone, meant.float(), rtol=1e-4, atol=1e-4)
        for rows in ROWS:
            assert torch.equal(layer(x[:rows]), alone[:rows])
        assert layer(x[:0]).shape == (0, outputs)


def test_they_take_as_many_bits_as_they_have_beside_their_scales(library: ctypes.CDLL) -> None:
    for bits, zeros in ((4, False), (4, True), (8, False)):
        kept = random_integers(bits, 512, 64, 128, zeros=zeros)
        layer = QuantizedLinear(nn.Linear(512, 64), kept, library, dots=False, wide=False)
        scales = 4 * 64 * 512 // 128
        assert layer.nbytes == 512 * 64 * bits // 8 + scales + (scales // 2 if zeros else 0)
        more = replace(kept, offsets=kept.scales)
        assert (
            QuantizedLinear(nn.Linear(512, 64), more, library, dots=False, wide=False).nbytes - layer.nbytes == scales
        )


def test_results_are_of_the_type_of_the_inputs_unless_they_are_wanted_wide(library: ctypes.CDLL) -> None:
    kept = random_integers(8, 64, 32, 32, zeros=False)
    x = torch.randn(2, 3, 64, dtype=torch.bfloat16)
    for wide in (False, True):
        layer = QuantizedLinear(nn.Linear(64, 32), kept, library, dots=False, wide=wide)
        assert layer(x).dtype is (torch.float32 if wide else torch.bfloat16)
        assert layer(x).shape == (2, 3, 32)


def test_infinite_and_undefined_inputs_are_not_hidden(library: ctypes.CDLL) -> None:
    kept = random_integers(4, 64, 48, 32, zeros=False)
    layer = QuantizedLinear(nn.Linear(64, 48), kept, library, dots=False, wide=True)
    for value in (float("nan"), float("inf")):
        x = torch.zeros(20, 64)
        x[3, 5] = value
        assert not layer(x)[3].isfinite().any()
        assert layer(x)[4:].isfinite().all()


def test_what_the_kernel_has_no_place_for_is_left_as_it_is() -> None:
    signed, scales = torch.zeros(8, 24, dtype=torch.int8), torch.ones(8, 4)
    assert integers(4, signed, scales, torch.zeros(8, 4)) is None  # groups of six
    assert integers(5, signed, torch.ones(8, 3), torch.zeros(8, 3)) is None
    assert integers(8, signed, torch.ones(8, 3), torch.ones(8, 3)) is None  # zeros
    assert integers(4, signed + 9, torch.ones(8, 3), torch.zeros(8, 3)) is None  # beyond four bits


@pytest.mark.parametrize(("bits", "zeros"), [(4, False), (4, True), (8, False)])
def test_what_weights_were_made_of_is_found_behind_their_rounding(bits: int, zeros: bool) -> None:
    kept = random_integers(bits, 64, 24, 16, zeros=zeros)
    own = None if kept.zeros is None else kept.zeros.int() - 8
    found = integers_behind(kept.weights().bfloat16(), bits, kept.scales, own)
    assert found is not None
    assert torch.equal(found.weights(), kept.weights())
    assert integers_behind(torch.randn(24, 64), bits, kept.scales, own) is None
