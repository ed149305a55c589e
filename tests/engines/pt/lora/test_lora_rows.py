"""Batched LoRA against the formula: each row of a layer gets the update of its own adapter, whatever is beside it."""

import ctypes

import pytest
import torch
from torch import Tensor, nn

from engines.pt.layers.linear import pack
from engines.pt.lora.low_rank import Kernel
from engines.pt.lora.slots import Group
from tests.engines.pt.lora.lora_layers import RANKS, SLOTS, Layer, matrices, some_slots
from tests.engines.pt.machines import LESSER_MACHINES, library_with

TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-3},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-3},  # one step of its last digit, where two sums fall on both sides
}


@pytest.fixture(params=["kernel", *LESSER_MACHINES], scope="module")
def machine(request: pytest.FixtureRequest, library: ctypes.CDLL) -> ctypes.CDLL:
    """The kernel's library for this machine, and for lesser ones of its kind."""
    if request.param == "kernel":
        return library
    return library_with(*LESSER_MACHINES[request.param])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9, 33, 150])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (64, 48), (33, 17), (100, 7), (577, 129)])
def test_each_row_gets_the_update_of_its_own_adapter(
    way: ctypes.CDLL | None, inputs: int, outputs: int, rows: int
) -> None:
    layer = Layer(way, inputs, outputs)
    x, slots = torch.randn(1, rows, inputs), some_slots(rows)
    torch.testing.assert_close(layer(x, slots), layer.by_hand(x, slots), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("inputs", [1, 31, 64, 577])
@pytest.mark.parametrize("ranks", [RANKS, (1,) * SLOTS, (33, 2, 0, 64, 17)], ids=str)
def test_on_every_machine_layers_with_the_same_input_are_computed_together(
    machine: ctypes.CDLL, dtype: torch.dtype, inputs: int, ranks: tuple[int, ...]
) -> None:
    layer = Layer(machine, inputs, 48, 1, 700, ranks=ranks, dtype=dtype)
    layer.layers[1].write(0, None, None)
    layer.adapters[1][0] = None
    for rows in (1, 7, 40):
        x, slots = torch.randn(1, rows, inputs, dtype=dtype), some_slots(rows)
        for number, found in enumerate(layer.all(x, slots)):
            torch.testing.assert_close(found, layer.by_hand(x, slots, number), **TOLERANCES[dtype])


@pytest.mark.parametrize("slots", [[3] * 20, [0] * 3 + [3] * 9 + [-1] * 2 + [3] * 6, [-1] * 20, [1] * 20])
def test_rows_of_one_adapter_beside_each_other(way: ctypes.CDLL | None, slots: list[int]) -> None:
    layer = Layer(way)
    x = torch.randn(1, 20, 64)
    torch.testing.assert_close(layer(x, slots), layer.by_hand(x, slots), rtol=1e-4, atol=1e-3)


def check_rows_alone(layer: Layer, x: Tensor) -> None:
    """Every row is the same to the last bit, alone and beside others."""
    rows = x.shape[1]
    slots = sorted(some_slots(rows))
    alone = torch.cat([layer(x[:, i : i + 1], slots[i : i + 1]) for i in range(rows)], dim=1)
    for first, last in ((0, rows), (0, 2), (1, 4), (7, 11), (13, rows - 1)):
        assert torch.equal(layer(x[:, first:last], slots[first:last]), alone[:, first:last])
    shuffled = torch.randperm(rows)
    assert torch.equal(layer(x[:, shuffled], [slots[i] for i in shuffled]), alone[:, shuffled])


@pytest.mark.parametrize("outputs", [48, 129])
def test_a_row_is_the_same_to_the_last_bit_whatever_rows_are_beside_it(library: ctypes.CDLL, outputs: int) -> None:
    layer = Layer(library, 577, outputs)
    pack(model := nn.Sequential(layer.layer.base), library)
    layer.layer.base = model[0]
    check_rows_alone(layer, torch.randn(1, 60, 577))


class RowByRow(nn.Module):
    """A layer whose rows do not depend on those beside them, as torch's own may in the last digit."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :1].repeat(1, 1, self.outputs)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_on_every_machine_a_row_does_not_depend_on_those_beside_it(machine: ctypes.CDLL, dtype: torch.dtype) -> None:
    layer = Layer(machine, 577, 129, 9, dtype=dtype)
    for one in layer.layers:
        one.base = RowByRow(one.out_features)
    check_rows_alone(layer, torch.randn(1, 60, 577, dtype=dtype))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_infinite_and_undefined_inputs_are_not_hidden(machine: ctypes.CDLL, dtype: torch.dtype) -> None:
    layer = Layer(machine, 577, 129, dtype=dtype)
    for value in (float("nan"), float("inf")):
        x = torch.zeros(1, 8, 577, dtype=dtype)
        x[0, 3, 5] = value
        y = layer(x, [3] * 8)
        assert not y[0, 3].isfinite().any()
        assert y[0, :3].isfinite().all() and y[0, 4:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes(way: ctypes.CDLL | None, dtype: torch.dtype) -> None:
    layer = Layer(way, dtype=dtype)
    x, slots = torch.randn(1, 30, 64, dtype=dtype), some_slots(30)
    expected = layer.by_hand(x, slots)
    found = layer(x, slots)
    assert found.dtype is dtype
    assert ((found - expected).norm() / expected.norm()).item() < 2e-2


def test_an_input_that_is_used_again_is_computed_again(library: ctypes.CDLL) -> None:
    layer = Layer(library, 64, 48, 9)
    x = torch.randn(1, 6, 64)
    for slots in ([3] * 6, [0] * 6):
        first, _ = layer.all(x, slots)
        assert torch.equal(layer(x, slots), first)
        torch.testing.assert_close(first, layer.by_hand(x, slots), **TOLERANCES[torch.float32])


def test_layers_of_which_only_some_are_adapted(library: ctypes.CDLL) -> None:
    layer = Layer(library, 64, 48, 9, 30, ranks=(0,) * SLOTS)
    group = Group(["layer.0", "layer.1", "layer.2"], Kernel(SLOTS, 64, [48, 9, 30], torch.float32, library))
    for number in (0, 2):
        layer.layers[number]._group = group
        layer.adapters[number][3] = matrices(5, 64, layer.bases[number].out_features)
        layer.layers[number].write(3, layer.adapters[number][3], None)
    layer.layers[1] = layer.bases[1]
    x, slots = torch.randn(1, 6, 64), [3, -1, 3, 0, 3, 3]
    for number, found in enumerate(layer.all(x, slots)):
        torch.testing.assert_close(found, layer.by_hand(x, slots, number), **TOLERANCES[torch.float32])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_cuda(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    layer = Layer(library, dtype=dtype, device="cuda")
    x, slots = torch.randn(1, 150, 64, dtype=dtype, device="cuda"), some_slots(150)
    expected = layer.by_hand(x, slots)
    assert ((layer(x, slots) - expected).norm() / expected.norm()).item() < 2e-2


def test_what_overflows_with_another_adapter_is_no_harm() -> None:
    layer = Layer(None, dtype=torch.float16)
    layer.layer.write(0, tuple(torch.full_like(m, 60000.0) for m in layer.adapters[0][0]), None)
    x, slots = torch.randn(1, 8, 64, dtype=torch.float16), [3] * 7 + [0]
    found = layer(x, slots)
    assert found[0, :7].isfinite().all() and not found[0, 7].isfinite().any()
