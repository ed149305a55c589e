"""Packed linear layers and embeddings against torch's own."""

import ctypes
import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from engines.pt.layers.linear import DotLinear, PackedLinear, WideningEmbedding, WideningLinear, pack
from engines.pt.layers.pages import ALIGNMENT, PAGE, REGION, Pages
from engines.pt.runner import ModelRunner
from tests.engines.pt.driving import settings
from tests.engines.pt.machines import library_with


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def linear(
    inputs: int, outputs: int, *, bias: bool = True, dtype: torch.dtype = torch.float32, narrow: bool = True
) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    if narrow:
        layer.weight.data = layer.weight.data.bfloat16().to(dtype)
    return layer


def packed(layer: nn.Linear, library: ctypes.CDLL) -> nn.Module:
    model = nn.Sequential(layer)
    pack(model, library)
    return model[0]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 32, 64, 65, 150])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (64, 16), (100, 33), (576, 192), (700, 15)])
@pytest.mark.parametrize("bias", [True, False])
def test_bfloat16_weights_give_what_float32_ones_give(
    library: ctypes.CDLL, inputs: int, outputs: int, rows: int, bias: bool
) -> None:
    layer = linear(inputs, outputs, bias=bias)
    widening = packed(layer, library)
    assert isinstance(widening, WideningLinear)
    x = torch.randn(2, rows, inputs)
    with torch.inference_mode():
        torch.testing.assert_close(widening(x), layer(x), rtol=1e-5, atol=1e-5)


def test_a_row_is_the_same_to_the_last_bit_whatever_rows_are_beside_it(library: ctypes.CDLL) -> None:
    widening = packed(linear(576, 100), library)
    x = torch.randn(200, 576)
    alone = torch.cat([widening(row[None]) for row in x])
    for rows in (2, 5, 6, 9, 13, 64, 65, 200):
        assert torch.equal(widening(x[:rows]), alone[:rows])


def test_nothing_of_a_packed_model_lies_in_the_file_that_it_was_read_from(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The smallest part of it would keep all of the file in memory."""
    own = shutil.copytree(folder("llama"), tmp_path / "model")
    runner = ModelRunner(settings(own))
    assert runner.model.model.norm.weight.any()
    gc.collect()
    assert str(own) not in Path("/proc/self/maps").read_text()


def test_rows_need_not_be_contiguous(library: ctypes.CDLL) -> None:
    layer = linear(64, 48)
    x = torch.randn(64, 7).T
    with torch.inference_mode():
        torch.testing.assert_close(packed(layer, library)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_no_rows_give_no_rows(library: ctypes.CDLL) -> None:
    assert packed(linear(64, 48), library)(torch.empty(1, 0, 64)).shape == (1, 0, 48)


def test_the_packed_weights_take_half_of_the_memory(library: ctypes.CDLL) -> None:
    widening = packed(linear(576, 192), library)
    assert widening._packed.nbytes == 576 * 192 * 2


def test_weights_with_more_digits_stay_float32(library: ctypes.CDLL) -> None:
    layer = linear(64, 48, narrow=False)
    layer.weight.data[:-1] = layer.weight.data[:-1].bfloat16().float()  # one row is enough
    x = torch.randn(5, 64)
    replaced = packed(layer, library)
    assert isinstance(replaced, PackedLinear)
    with torch.inference_mode():
        torch.testing.assert_close(replaced(x), layer(x), rtol=1e-5, atol=1e-5)


def test_without_the_kernels_onednn_does_the_work() -> None:
    layer = linear(64, 48)
    replaced = packed(layer, None)
    assert isinstance(replaced, PackedLinear)
    x = torch.randn(5, 64)
    with torch.inference_mode():
        torch.testing.assert_close(replaced(x), layer(x), rtol=1e-5, atol=1e-5)


def test_infinite_and_undefined_inputs_are_not_hidden(library: ctypes.CDLL) -> None:
    widening = packed(linear(64, 48), library)
    for value in (float("nan"), float("inf")):
        x = torch.zeros(20, 64)
        x[3, 5] = value
        y = widening(x)
        assert not y[3].isfinite().any()
        assert y[4:].isfinite().all()


def test_embeddings_of_bfloat16_values_take_half_of_the_memory(library: ctypes.CDLL) -> None:
    table = nn.Embedding(50, 8)
    table.weight.data = table.weight.data.bfloat16().float()
    replaced = packed(table, library)
    assert isinstance(replaced, WideningEmbedding)
    assert replaced.weight.dtype is torch.bfloat16
    ids = torch.tensor([[3, 49, 0]])
    assert torch.equal(replaced(ids), table(ids))


def test_embeddings_with_more_digits_stay_as_they_are(library: ctypes.CDLL) -> None:
    table = nn.Embedding(50, 8)
    assert packed(table, library) is table


class Scaled(nn.Linear):
    """Some models compute more than a product in their linear layers."""


def test_layers_of_other_classes_are_left_alone(library: ctypes.CDLL) -> None:
    layer = Scaled(64, 48)
    assert packed(layer, library) is layer


# --- products of bfloat16 values


@pytest.fixture(params=["tiles", "no tiles"], scope="module")
def dots(request: pytest.FixtureRequest, library: ctypes.CDLL) -> ctypes.CDLL:
    """The kernels with AMX's tiles, and without."""
    found = library if request.param == "tiles" else library_with("-mno-amx-bf16")
    if not found.has_dots():
        pytest.skip("this CPU has no products of bfloat16 values")
    if request.param == "tiles" and not found.has_tiles():
        pytest.skip("this CPU has no AMX, or the system does not lend its tiles")
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(576, 192), (34, 150), (32, 33), (48, 32), (1376, 40), (2, 1)])
def test_bfloat16_values_are_multiplied_exactly_and_each_row_as_it_is_alone(
    dots: ctypes.CDLL, inputs: int, outputs: int, bias: bool
) -> None:
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16)
    head = DotLinear(linear, dots)
    x = torch.randn(150, inputs)
    exact = linear.weight.double() @ x.bfloat16().double().T + (linear.bias.double()[:, None] if bias else 0)
    alone = torch.cat([head(row[None]) for row in x])
    assert alone.dtype is torch.float32
    assert torch.allclose(alone, exact.T.float(), rtol=1e-5, atol=1e-5)
    for rows in (*range(1, 71), 127, 128, 129, 150):
        assert torch.equal(head(x[:rows]), alone[:rows])


def test_infinite_and_undefined_inputs_stay_in_their_rows(dots: ctypes.CDLL) -> None:
    head = DotLinear(nn.Linear(64, 48, dtype=torch.bfloat16), dots)
    for value in (float("nan"), float("inf")):
        x = torch.zeros(37, 64)
        x[20, 5] = value
        y = head(x)
        assert not y[20].isfinite().any()
        assert y[:20].isfinite().all()
        assert y[21:].isfinite().all()


def test_threads_change_no_bit_and_leave_nothing_behind(dots: ctypes.CDLL) -> None:
    """Each thread has tiles of its own, of another shape from call to call."""
    head, x = DotLinear(nn.Linear(320, 500, dtype=torch.bfloat16), dots), torch.randn(40, 320)
    alone = torch.cat([head(row[None]) for row in x])
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for rows in (40, 1, 17, 7):
                assert torch.equal(head(x[:rows]), alone[:rows])
    finally:
        torch.set_num_threads(1)


# --- memory for weights


def test_weights_lie_side_by_side_and_in_each_others_way_nowhere() -> None:
    pages = Pages()
    sizes = [3, 1000, REGION // 2, REGION // 4 + 1, 7]  # of two bytes each: the fourth has no room beside the others
    tensors = [pages.zeros([size], torch.bfloat16) for size in sizes]
    for number, tensor in enumerate(tensors):
        tensor[:1], tensor[-1:] = number, number
        assert tensor.data_ptr() % ALIGNMENT == 0
    assert [len(tensor) for tensor in tensors] == sizes
    assert [(t[0].item(), t[-1].item()) for t in tensors] == [(number, number) for number in range(len(sizes))]
    assert tensors[0].data_ptr() % PAGE == 0
