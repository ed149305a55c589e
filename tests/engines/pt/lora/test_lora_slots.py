"""What lies in the slots of a layer: what is written there, and what it leaves when it goes."""

import ctypes
import weakref

import pytest
import torch
from torch import Tensor, nn

from engines.pt.layers.linear import pack
from engines.pt.lora.low_rank import Rows
from engines.pt.lora.slots import LoraEmbedding, Step
from tests.engines.pt.lora.lora_layers import SLOTS, Layer, matrices


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_a_slot_that_is_written_again_keeps_nothing_of_what_was_in_it(way: ctypes.CDLL | None) -> None:
    layer, x = Layer(way), torch.randn(1, 9, 64)
    for rank in (2, 32, 0, 5):
        layer.write(3, rank)
        for slots in ([3] * 9, [0, 3, 2] * 3):
            torch.testing.assert_close(layer(x, slots), layer.by_hand(x, slots), rtol=1e-4, atol=1e-3)
    layer.write(3, 0)
    assert torch.equal(layer(x, [3] * 9), layer.layer.base(x))


def test_a_write_that_fails_half_way_leaves_nothing_for_the_next_one(way: ctypes.CDLL | None) -> None:
    layer, x = Layer(way), torch.randn(1, 9, 64)
    a, _ = matrices(12, 64, 48)
    with pytest.raises((RuntimeError, ValueError)):
        layer.layer.write(0, (a, torch.randn(3, 5)), None)
    layer.write(0, 2)
    torch.testing.assert_close(layer(x, [0] * 9), layer.by_hand(x, [0] * 9), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        (torch.randn(4, 63), torch.randn(4, 48)),
        (torch.randn(4, 64), torch.randn(3, 48)),
    ],
    ids=["inputs", "ranks"],
)
def test_the_kernel_takes_only_matrices_that_it_can_read(library: ctypes.CDLL, wrong: tuple[Tensor, Tensor]) -> None:
    layer, x = Layer(library), torch.randn(1, 9, 64)
    with pytest.raises(ValueError, match="matrices"):
        layer.layer.write(0, wrong, None)
    torch.testing.assert_close(layer(x, [0] * 9), layer.by_hand(x, [0] * 9), rtol=1e-4, atol=1e-3)


def test_matrices_lie_as_they_like(library: ctypes.CDLL) -> None:
    layer, x = Layer(library), torch.randn(1, 9, 64)
    layer.adapters[0][0] = (torch.randn(64, 4).T, torch.randn(48, 4).T)
    layer.layer.write(0, layer.adapters[0][0], None)
    torch.testing.assert_close(layer(x, [0] * 9), layer.by_hand(x, [0] * 9), rtol=1e-4, atol=1e-3)


def test_a_layer_that_computes_in_another_dtype_than_its_adapters_fails(library: ctypes.CDLL) -> None:
    layer = Layer(library)
    layer.layer.base = nn.Linear(64, 48, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="bfloat16"):
        layer(torch.randn(1, 4, 64, dtype=torch.bfloat16), [0] * 4)


def test_a_stack_is_as_high_as_the_highest_rank_in_it() -> None:
    layer = Layer(None, ranks=(0,) * SLOTS)
    assert not layer.layer._stack
    for slot, rank, height in ((0, 3, 3), (1, 8, 8), (2, 5, 8), (1, 4, 5), (2, 0, 4), (1, 0, 3), (0, 0, 0)):
        layer.write(slot, rank)
        stack = layer.layer._stack
        assert stack is not None
        assert (stack.a.shape, stack.b.shape) == ((SLOTS, height, 64), (SLOTS, height, 48))
        x, slots = torch.randn(1, 8, 64), [0, 1, 2, -1, 0, 1, 2, 4]
        torch.testing.assert_close(layer(x, slots), layer.by_hand(x, slots), rtol=1e-4, atol=1e-3)


def test_a_slot_of_the_kernel_takes_no_memory_beside_the_adapters_own(library: ctypes.CDLL) -> None:
    layer = Layer(library)
    adapter = matrices(9, 64, 48)
    known = [weakref.ref(matrix) for matrix in adapter]
    layer.layer.write(1, adapter, None)
    assert layer.layer._group._kernel._a[1] == adapter[0].data_ptr()
    del adapter
    assert all(matrix() is not None for matrix in known)
    layer.layer.write(1, None, None)
    assert all(matrix() is None for matrix in known)


@pytest.mark.parametrize("packed", [True, False])
def test_an_adapter_may_bring_a_weight_of_its_own(way: ctypes.CDLL | None, packed: bool) -> None:
    layer = Layer(way, head=True)
    if packed:
        pack(model := nn.Sequential(layer.layer.base), way)
        layer.layer.base = model[0]
    own, x = torch.randn(48, 64), torch.randn(1, 6, 64)
    layer.layer.write(0, layer.adapters[0][0], own)
    slots = [2, 0, -1, 0, 3, 0]
    layer.step.wanted = Rows(torch.tensor(slots, dtype=torch.int32), way)
    expected = layer.by_hand(x, slots)
    for row in (1, 3, 5):
        a, b = layer.adapters[0][0]
        expected[0, row] = nn.functional.linear(x[0, row], own, layer.layer.base.bias) + x[0, row] @ a.T @ b
    with torch.inference_mode():
        torch.testing.assert_close(layer.layer(x), expected, rtol=1e-4, atol=1e-3)


def test_a_layer_that_gets_other_rows_than_the_step_has_fails(way: ctypes.CDLL | None) -> None:
    with pytest.raises(RuntimeError, match="rows"):
        Layer(way)(torch.randn(1, 4, 64), [0, 1, 2])


def test_embeddings(library: ctypes.CDLL) -> None:
    table = nn.Embedding(50, 8)
    table.weight.data = table.weight.data.bfloat16().float()
    pack(model := nn.Sequential(table), library)
    step = Step()
    layer = LoraEmbedding(model[0], step)
    a, b, own = torch.randn(50, 4), torch.randn(4, 8), torch.randn(50, 8)
    layer.write(0, (a, b), None)
    layer.write(1, (a, b), own)
    ids = torch.tensor([[3, 49, 0, 3, 7]])
    step.tokens = Rows(torch.tensor([0, 1, -1, 2, 0], dtype=torch.int32), library)
    expected = table(ids).clone()
    expected[0, [0, 4]] += a[ids[0, [0, 4]]] @ b
    expected[0, 1] = own[49] + a[49] @ b
    with torch.inference_mode():
        torch.testing.assert_close(layer(ids), expected)
        layer.write(0, None, None)
        layer.write(1, None, None)
        assert torch.equal(layer(ids), table(ids))
