"""Three ways to attend to blocks, one answer: that of plain attention over the whole sequence."""

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from engines.errors import UnsupportedModel
from engines.pt.kernels import build
from engines.pt.layers import attention
from engines.pt.layers.attention import (
    Attend,
    KernelAttention,
    KVCache,
    LayerShape,
    StepContext,
    attend_gather,
    attend_varlen,
    choose,
)
from engines.pt.layers.eight_bits import KINDS, kept_as
from tests.engines.pt.machines import LESSER_MACHINES, library_with

BLOCK_SIZE = 4
Spans = tuple[tuple[int, int], ...]
SEGMENTS: Spans = ((0, 1), (12, 13), (0, 9), (5, 22), (30, 31))
"""Positions (first, behind the last) that each segment of the step computes: prompts, chunks, decodes."""


def shape(
    *,
    dim: int = 16,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    window: int = 0,
    kv_heads: int = 2,
    kept: str = "auto",
) -> LayerShape:
    return LayerShape(kv_heads, dim, value_dim or dim, window, dtype, torch.device(device), kept=kept_as(kept))


class Step:
    """Random queries, keys and values of a step, with their blocks scattered over the cache."""

    def __init__(
        self,
        layer: LayerShape,
        *,
        heads: int = 4,
        block_size: int = BLOCK_SIZE,
        large: float = 1.0,
        segments: Spans = SEGMENTS,
        dots: bool = True,
    ) -> None:
        """`dots`: what 8 bits stand for is rounded to the layer's type before it is multiplied."""
        torch.manual_seed(0)
        self.segments = segments
        device, dtype = layer.device, layer.dtype
        lengths = [end for _, end in segments]
        counts = [-(-length // block_size) for length in lengths]
        order = torch.randperm(sum(counts) + 3).tolist()
        blocks = [[order.pop() for _ in range(count)] for count in counts]
        self.cache = KVCache({0: layer}, sum(counts) + 3, block_size)
        # What no token may see: the rest of the last blocks, and blocks of nobody.
        for tensor in self.cache.tensors:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
        self.keys = [torch.randn(n, layer.kv_heads, layer.key_dim, device=device, dtype=dtype) for n in lengths]
        self.values = [torch.randn(n, layer.kv_heads, layer.value_dim, device=device, dtype=dtype) for n in lengths]
        for own, keys, values in zip(blocks, self.keys, self.values, strict=True):
            slots = torch.tensor([own[p // block_size] * block_size + p % block_size for p in range(len(keys))])
            self.cache.write(0, slots.to(device), keys, values)
        if layer.kept is not None:
            read = dtype if dots else torch.float32
            for states in (self.keys, self.values):
                states[:] = [layer.kept.values(*layer.kept.round(each)).to(read) for each in states]
        spans = [end - first for first, end in segments]
        starts = [sum(spans[:i]) for i in range(len(spans) + 1)]
        width = max(counts)
        self.query = large * torch.randn(starts[-1], heads, layer.key_dim, device=device, dtype=dtype)
        self.context = StepContext(
            self.cache,
            attend_gather,
            torch.empty(0, device=device),
            torch.tensor([s for s, span in enumerate(spans) for _ in range(span)], dtype=torch.int32, device=device),
            torch.tensor([p + 1 for a, b in segments for p in range(a, b)], dtype=torch.int32, device=device),
            torch.tensor([own + [0] * (width - len(own)) for own in blocks], dtype=torch.int32, device=device),
            starts,
        )

    def run(self, attend: Attend, scale: float = 0.3, window: int = 0, softcap: float = 0.0) -> Tensor:
        return attend(self.query, 0, self.context, scale, window, softcap).float()

    def plain(self, scale: float = 0.3, window: int = 0, softcap: float = 0.0) -> Tensor:
        """One sequence after another, one head after another, in double precision."""
        out = []
        for s, (first, end) in enumerate(self.segments):
            query = self.query[self.context.starts[s] : self.context.starts[s + 1]].double()
            keys, values = self.keys[s].double(), self.values[s].double()
            group = query.shape[1] // keys.shape[1]
            at, position = torch.arange(end)[None], torch.arange(first, end)[:, None]
            seen = (at <= position) & (at > position - window if window else True)
            heads = []
            for h in range(query.shape[1]):
                scores = query[:, h] @ keys[:, h // group].T * scale
                scores = softcap * torch.tanh(scores / softcap) if softcap else scores
                weights = scores.masked_fill(~seen.to(scores.device), -torch.inf).softmax(-1)
                heads.append(weights @ values[:, h // group])
            out.append(torch.stack(heads, 1))
        return torch.cat(out).float()


@pytest.fixture(scope="session")
def kernel(library: ctypes.CDLL) -> KernelAttention:
    return KernelAttention(library)


@pytest.fixture(scope="session", params=[(), *LESSER_MACHINES.values()], ids=str)
def machine(request: pytest.FixtureRequest, library: ctypes.CDLL) -> ctypes.CDLL:
    """The kernels for this machine, and for lesser ones of its kind."""
    return library_with(*request.param) if request.param else library


VARIANTS = [{}, {"window": 1}, {"window": 5}, {"window": 100}, {"softcap": 1.5}, {"window": 7, "softcap": 0.8}]


@pytest.mark.parametrize("heads", [2, 4, 6])
@pytest.mark.parametrize("dim", [8, 20, 64, 128])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_kernel_and_gather_agree_with_plain_attention(
    kernel: KernelAttention, options: dict[str, Any], dim: int, heads: int
) -> None:
    step = Step(shape(dim=dim), heads=heads)
    plain = step.plain(**options)
    assert (step.run(kernel, **options) - plain).abs().max() < 1e-5
    assert (step.run(attend_gather, **options) - plain).abs().max() < 1e-5


@pytest.mark.parametrize("block_size", [1, 3, 32])
def test_any_block_size_gives_the_same(kernel: KernelAttention, block_size: int) -> None:
    step = Step(shape(), block_size=block_size)
    assert (step.run(kernel, window=6) - step.plain(window=6)).abs().max() < 1e-5
    assert (step.run(attend_gather, window=6) - step.plain(window=6)).abs().max() < 1e-5


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_bfloat16_loses_no_more_than_its_own_rounding(kernel: KernelAttention, options: dict[str, Any]) -> None:
    step = Step(shape(dim=64, dtype=torch.bfloat16))
    plain = step.plain(**options)
    # Half a digit of results up to 4; and a little for the weights, which are rounded as results are.
    assert (step.run(kernel, **options) - plain).abs().max() < 2**-7 + 2**-10
    assert (step.run(attend_gather, **options) - plain).abs().max() < 2**-5


@pytest.mark.parametrize("kept", sorted(KINDS))
@pytest.mark.parametrize("dim", [20, 64])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_keys_and_values_in_8_bits_are_what_they_stand_for(
    kernel: KernelAttention, options: dict[str, Any], dim: int, kept: str
) -> None:
    step = Step(shape(dim=dim, kept=kept))
    plain = step.plain(**options)
    assert (step.run(kernel, **options) - plain).abs().max() < 1e-5
    assert (step.run(attend_gather, **options) - plain).abs().max() < 1e-5


@pytest.mark.parametrize("kept", sorted(KINDS))
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_8_bits_are_multiplied_as_bfloat16_in_a_model_that_is_where_the_machine_does_so(
    machine: ctypes.CDLL, options: dict[str, Any], kept: str
) -> None:
    step = Step(shape(dim=64, dtype=torch.bfloat16, kept=kept), dots=bool(machine.has_dots()))
    kernel = KernelAttention(machine)
    assert (step.run(kernel, **options) - step.plain(**options)).abs().max() < 2**-7 + 2**-10


def test_scores_beyond_the_range_of_exp_do_no_harm(kernel: KernelAttention) -> None:
    step = Step(shape(), large=300.0)
    assert (step.run(kernel) - step.plain()).abs().max() < 1e-3


LONG: Spans = ((1000, 1130), (0, 70), (1299, 1300), (511, 514))
"""More keys than the kernel takes at a time, and more queries."""


@pytest.mark.parametrize("kept", ["auto", *sorted(KINDS)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 600}, {"window": 40, "softcap": 1.5}], ids=str)
def test_many_keys_and_queries_are_taken_piece_by_piece(
    kernel: KernelAttention, library: ctypes.CDLL, options: dict[str, Any], dtype: torch.dtype, kept: str
) -> None:
    layer, dots = shape(dim=48, dtype=dtype, kept=kept), bool(library.has_dots())
    step = Step(layer, heads=6, block_size=32, segments=LONG, dots=dots)
    deviation = (step.run(kernel, **options) - step.plain(**options)).abs().max()
    assert deviation < (1e-5 if dtype is torch.float32 else 2**-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [0, 600])
@pytest.mark.parametrize("kept", ["auto", *sorted(KINDS)])
def test_a_query_gets_the_same_alone_as_among_others(
    kernel: KernelAttention, window: int, dtype: torch.dtype, kept: str
) -> None:
    together = Step(shape(dim=64, dtype=dtype, kept=kept), heads=6, block_size=32, segments=((900, 1100),))
    results = together.run(kernel, window=window)
    context = together.context
    for row in (0, 31, 32, 123, 124, 199):
        one = replace(context, rows=context.rows[:1], lens=context.lens[row : row + 1], starts=[0, 1])
        alone = kernel(together.query[row : row + 1], 0, one, 0.3, window, 0.0)
        assert torch.equal(alone[0].float(), results[row])


@pytest.mark.parametrize("options", [{}, {"window": 600}, {"window": 40, "softcap": 1.5}], ids=str)
def test_both_hold_on_a_machine_without_amx(options: dict[str, Any]) -> None:
    kernel = KernelAttention(library_with("-mno-amx-bf16"))
    step = Step(shape(dim=48, dtype=torch.bfloat16), heads=6, block_size=32, segments=LONG)
    results, context = step.run(kernel, **options), step.context
    assert (results - step.plain(**options)).abs().max() < 2**-7
    for row in (0, 42, 43, 129, 160, 200, 203):
        one = replace(context, rows=context.rows[row : row + 1], lens=context.lens[row : row + 1], starts=[0, 1])
        alone = kernel(step.query[row : row + 1], 0, one, 0.3, options.get("window", 0), options.get("softcap", 0.0))
        assert torch.equal(alone[0].float(), results[row])


def test_gather_takes_values_of_another_width_than_keys() -> None:
    step = Step(shape(dim=16, value_dim=24))
    assert step.run(attend_gather).shape[-1] == 24
    assert (step.run(attend_gather) - step.plain()).abs().max() < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="varlen_attn runs on CUDA only")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_varlen_agrees_with_plain_attention(options: dict[str, Any], dtype: torch.dtype) -> None:
    step = Step(shape(dim=64, dtype=dtype, device="cuda"), block_size=256)
    assert (step.run(attend_varlen, **options) - step.plain(**options)).abs().max() < 2**-6


@pytest.mark.parametrize("kept", ["auto", "int8_per_token_head"])
def test_copied_blocks_hold_the_same(kept: str) -> None:
    cache = KVCache({0: shape(kept=kept), 3: shape(value_dim=8, kept=kept)}, 4, BLOCK_SIZE)
    for tensor in cache.tensors:
        tensor.copy_(torch.arange(tensor.numel()).view_as(tensor))
    cache.copy_blocks([0, 2], [3, 1])
    for tensor in cache.tensors:
        assert torch.equal(tensor[0], tensor[3]) and torch.equal(tensor[2], tensor[1])


# ---- which of them is chosen


def test_the_kernel_is_chosen_where_it_can_run(library: ctypes.CDLL) -> None:
    assert isinstance(choose(None, {0: shape(), 1: shape(dim=8)}, library, 256), KernelAttention)
    assert isinstance(choose(None, {0: shape(dtype=torch.bfloat16)}, library, 256), KernelAttention)


@pytest.mark.parametrize("odd", [shape(value_dim=8), shape(dtype=torch.float16)])
def test_one_layer_that_the_kernel_cannot_run_takes_all_to_gather(library: ctypes.CDLL, odd: LayerShape) -> None:
    assert choose(None, {0: shape(dtype=odd.dtype), 1: odd}, library, 256) is attend_gather


@pytest.mark.parametrize("attn_impl", ["eager", "sdpa"])
def test_plain_torch_is_used_where_it_is_asked_for(library: ctypes.CDLL, attn_impl: str) -> None:
    assert choose(attn_impl, {0: shape()}, library, 256) is attend_gather


def test_without_a_compiler_plain_torch_does_the_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert build.load() is None
    assert choose(None, {0: shape()}, None, 256) is attend_gather
    assert "no C compiler found" in caplog.text


@pytest.mark.parametrize(
    ("layer", "expected"),
    [(shape(dtype=torch.float16), attend_varlen), (shape(dtype=torch.float32), attend_gather)],
)
def test_on_cuda_varlen_takes_half_precision(layer: LayerShape, expected: Attend) -> None:
    assert choose(None, {0: replace(layer, device=torch.device("cuda"))}, None, 256) is expected


@pytest.mark.parametrize(
    ("odd", "block_size", "reason", "param"),
    [
        ({}, 32, "block_size that is a multiple of 256: it is 32", "block_size"),
        ({"dim": 12}, 256, "a multiple of 8 up to 256, and this model has 12 and 12", "attn_impl"),
        ({"dim": 264}, 256, "this model has 264 and 264", "attn_impl"),
        ({"dim": 16, "value_dim": 24}, 256, "of one size.* 16 and 24", "attn_impl"),
    ],
)
def test_what_varlen_cannot_take_goes_to_gather_and_is_no_flash_attention(
    odd: dict[str, Any], block_size: int, reason: str, param: str
) -> None:
    layers = {0: replace(shape(dtype=torch.bfloat16, **odd), device=torch.device("cuda"))}
    assert choose(None, layers, None, block_size) is attend_gather
    with pytest.raises(UnsupportedModel, match=reason) as refused:
        choose("flash_attn", layers, None, block_size)
    assert refused.value.param == param


def test_8_bits_are_read_by_the_kernel_and_by_plain_torch(library: ctypes.CDLL) -> None:
    layer = shape(dtype=torch.bfloat16, kept="int8_per_token_head")
    on_cuda = {0: replace(layer, device=torch.device("cuda"))}
    assert isinstance(choose(None, {0: layer}, library, 256), KernelAttention)
    assert choose(None, on_cuda, None, 256) is attend_gather
    with pytest.raises(UnsupportedModel, match="flash_attn reads no keys in 8 bits") as refused:
        choose("flash_attn", on_cuda, None, 256)
    assert refused.value.param == "kv_cache_dtype"


def test_flash_attention_needs_cuda() -> None:
    with pytest.raises(UnsupportedModel, match="CUDA device") as refused:
        choose("flash_attn", {0: shape(dtype=torch.bfloat16)}, None, 256)
    assert refused.value.param == "attn_impl"


def test_a_kernel_that_cannot_be_built_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("int main(")
    monkeypatch.setattr(build, "SOURCES", [broken])
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path)
    assert build.load() is None
    assert "could not be built (" in caplog.text and "broken.c:1" in caplog.text  # the compiler's own words
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == []


def test_a_built_kernel_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernel: KernelAttention) -> None:
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path)
    assert build.load() is not None
    [library] = (tmp_path / "kernels").iterdir()
    monkeypatch.setattr(subprocess, "run", None)  # it is not built again
    assert build.load() is not None
    assert library.exists()


def test_models_are_told_of_both_names() -> None:
    attention.register()
    known = AttentionInterface().valid_keys()
    assert {attention.NAME, attention.PROBE} <= {*known}
