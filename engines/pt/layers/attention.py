"""Attention over the paged key-value cache, registered with transformers so that its models call it.

A step runs all its tokens as one flat row, `input_ids[None]`; what ties a token to its sequence is in the `StepContext`
that travels through the model's keyword arguments as `step`. Three ways to compute the same thing:

- `kernel`: the C kernel, on CPUs (float32, bfloat16)
- `varlen`: torch's varlen_attn (FlashAttention with block tables), on CUDA (float16, bfloat16)
- `gather`: plain torch operations, anywhere, any dtype; the reference that the others are tested against
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from engines.errors import UnsupportedModel
from engines.process.machine import available_memory
from engines.pt.layers.eight_bits import EightBits, number_of

NAME = "tuneserve_paged"
PROBE = "tuneserve_probe"
FLASH_BLOCK, FLASH_DIMS, FLASH_MOST_DIM = 256, 8, 256
"""Of FlashAttention: blocks of a cache and sizes of heads are multiples of them, and heads no larger."""
"""Attention of the first, throw-away forward pass, which finds the shape of every layer."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The sizes of a layer's cache and how far back its tokens look, found by running the model once."""

    kv_heads: int
    key_dim: int
    value_dim: int
    window: int
    """Number of keys that a token sees, its own included; 0: all."""
    dtype: torch.dtype
    device: torch.device
    scale: float = 1.0
    """What scores are multiplied by."""
    softcap: float = 0.0
    """Scores become softcap * tanh(scores / softcap); 0: they do not."""
    kept: EightBits | None = None
    """How keys and values are kept in 8 bits; None: as they are."""

    @property
    def bytes_per_token(self) -> int:
        width, scales = (int(self.dtype.itemsize), 0) if self.kept is None else (1, 2 * torch.float32.itemsize)
        return self.kv_heads * ((self.key_dim + self.value_dim) * width + scales)


class KVCache:
    """Keys and values of every layer: (blocks, block_size, kv_heads, dim) tensors. Those in 8 bits are bytes, with
    scales (blocks, kv_heads, block_size) float32: a block is a row of each tensor."""

    def __init__(self, layers: dict[int, LayerShape], num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.layers = layers
        self.make()

    def make(self) -> None:
        """Take the memory. What is in it is anybody's."""
        layers, sizes = self.layers.items(), (self.num_blocks, self.block_size)
        self.keys = {i: _blocks(*sizes, s.kv_heads, s.key_dim, s) for i, s in layers}
        self.values = {i: _blocks(*sizes, s.kv_heads, s.value_dim, s) for i, s in layers}
        self.key_scales, self.value_scales = ({i: _scales(*sizes, s) for i, s in layers if s.kept} for _ in range(2))
        each = (self.keys, self.values, self.key_scales, self.value_scales)
        self.addresses = tuple(_addresses(tensors, len(layers)) for tensors in each)
        """Where the keys of each layer are, the values, and the scales of the two, for the kernels."""

    @property
    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        each = (self.keys, self.values, self.key_scales, self.value_scales)
        return [tensor for tensors in each for tensor in tensors.values()]

    @property
    def dtype(self) -> str:
        """What keys and values are kept in; of the first layer, where they differ."""
        first = next(iter(self.layers.values()))
        return str(first.dtype).removeprefix("torch.") if first.kept is None else first.kept.name

    def fill(self, value: float) -> None:
        """Have everything in it be one value."""
        for tensor in self.tensors:
            tensor.fill_(value)

    def free(self) -> None:
        """Give the memory up, until it is made again."""
        self.keys, self.values, self.key_scales, self.value_scales, self.addresses = {}, {}, {}, {}, ()
        if any(shape.device.type == "cuda" for shape in self.layers.values()):
            torch.cuda.empty_cache()

    def room(self) -> int:
        """Blocks that fit into half of the memory which is free now."""
        block = self.block_size * sum(shape.bytes_per_token for shape in self.layers.values())
        devices = {shape.device for shape in self.layers.values()}
        free = [torch.cuda.mem_get_info(each)[0] if each.type == "cuda" else available_memory() for each in devices]
        return int(min(free) * len(free) // 2 // block)

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store key and value (tokens, kv_heads, dim) at `slots` (tokens,): block * block_size + offset."""
        kept = self.layers[layer].kept
        pairs = ((self.keys, self.key_scales, key), (self.values, self.value_scales, value))
        for tensors, scales, states in pairs:
            if kept is not None:
                states, each = kept.round(states)
                scales[layer][slots // self.block_size, :, slots % self.block_size] = each
            tensors[layer].view(-1, *states.shape[1:]).index_copy_(0, slots, states)

    def read(self, layer: int, blocks: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The keys and values (blocks * block_size, kv_heads, dim) of some blocks."""
        kept = self.layers[layer].kept
        keys, values = self.keys[layer][blocks], self.values[layer][blocks]
        if kept is not None:
            key_scales, value_scales = (each[layer][blocks].mT for each in (self.key_scales, self.value_scales))
            keys, values = kept.values(keys, key_scales).to(dtype), kept.values(values, value_scales).to(dtype)
        return keys.flatten(0, 1), values.flatten(0, 1)

    def copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        """All at once: a request of many outputs has many copies, each of them small."""
        read, written = torch.tensor(sources), torch.tensor(targets)
        for tensor in self.tensors:
            tensor.index_copy_(0, written.to(tensor.device), tensor.index_select(0, read.to(tensor.device)))


def _blocks(num_blocks: int, block_size: int, heads: int, dim: int, shape: LayerShape) -> Tensor:
    # Not torch.zeros: untouched blocks of an empty tensor take no memory yet.
    dtype = shape.dtype if shape.kept is None else torch.uint8
    return torch.empty(num_blocks, block_size, heads, dim, dtype=dtype, device=shape.device)


def _scales(num_blocks: int, block_size: int, shape: LayerShape) -> Tensor:
    return torch.empty(num_blocks, shape.kv_heads, block_size, device=shape.device)


def _addresses(tensors: dict[int, Tensor], count: int) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * count)(*(tensors[i].data_ptr() for i in sorted(tensors)))


@dataclass(frozen=True)
class StepContext:
    """Positions of all tokens of a step. Segment s is the s-th sequence of the step; its tokens are consecutive."""

    cache: KVCache
    attend: "Attend"
    slot_mapping: Tensor  # (tokens,) int64: where each token's key and value are stored
    rows: Tensor  # (tokens,) int32: the segment of each token
    lens: Tensor  # (tokens,) int32: keys each token sees, its own included
    block_table: Tensor  # (segments, max_blocks) int32: blocks of each segment
    starts: list[int]  # first token of each segment, and the number of tokens at the end

    @cached_property
    def segment_lens(self) -> Tensor:
        """(segments,) int32: keys that the last token of each segment sees."""
        return self.lens[[end - 1 for end in self.starts[1:]]]

    @cached_property
    def cumulative(self) -> Tensor:
        """(segments + 1,) int32, `starts` on the device."""
        return torch.tensor(self.starts, dtype=torch.int32, device=self.lens.device)

    @cached_property
    def longest_query(self) -> int:
        return max(end - start for start, end in zip(self.starts, self.starts[1:], strict=False))

    @cached_property
    def longest_key(self) -> int:
        return int(self.segment_lens.max())

    def on(self, device: torch.device) -> "StepContext":
        """The same step for a layer on another device (a model spread by `device_map`)."""
        if device == self.slot_mapping.device:
            return self
        if device not in self._elsewhere:
            mapping, rows, lens = (tensor.to(device) for tensor in (self.slot_mapping, self.rows, self.lens))
            table = self.block_table.to(device)
            self._elsewhere[device] = StepContext(self.cache, self.attend, mapping, rows, lens, table, self.starts)
        return self._elsewhere[device]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, "StepContext"]:
        return {}


# (query (tokens, heads, dim), layer, step, scale, window, softcap) -> (tokens, heads, value_dim)
Attend = Callable[[Tensor, int, StepContext, float, int, float], Tensor]


def register() -> None:
    """Make NAME and PROBE known to transformers. NAME has no mask registered: the model then builds none."""
    AttentionInterface.register(NAME, paged_attention_forward)
    AttentionInterface.register(PROBE, probe_forward)
    AttentionMaskInterface.register(PROBE, _window_as_mask)


def paged_attention_forward(
    module: torch.nn.Module,
    query: Tensor,  # (1, heads, tokens, dim)
    key: Tensor,  # (1, kv_heads, tokens, dim)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    *,
    step: StepContext,
    **ignored: Any,  # dropout, position_ids and the like: nothing that changes a causal forward pass
) -> tuple[Tensor, None]:
    """The attention function that transformers' layers call; see `transformers.AttentionInterface`."""
    layer: int = module.layer_idx
    here = step.on(query.device)
    shape = here.cache.layers[layer]
    q, k, v = (states[0].transpose(0, 1).to(shape.dtype) for states in (query, key, value))
    here.cache.write(layer, here.slot_mapping, k, v)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    return here.attend(q.contiguous(), layer, here, scale, shape.window, softcap or 0.0)[None], None


def probe_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    step: "dict[int, LayerShape] | None" = None,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """Note the layer's shape in `step`, and compute nothing. Raises UnsupportedModel for what cannot be paged."""
    name = type(module).__name__
    if step is None:
        raise UnsupportedModel(f"{name} does not hand its keyword arguments on to its attention")
    if s_aux is not None:
        raise UnsupportedModel(f"{name} uses attention sinks, which this engine does not compute")
    # Some layers are told their window by the mask alone.
    window = sliding_window or 0 if attention_mask is None else int(attention_mask.flatten()[0])
    if sliding_window and window != sliding_window:
        raise UnsupportedModel(f"{name} has a window of {sliding_window} and a mask for a window of {window}")
    kv_heads, key_dim, value_dim = key.shape[1], key.shape[3], value.shape[3]
    scale = key_dim**-0.5 if scaling is None else scaling
    sizes, where = (kv_heads, key_dim, value_dim, window), (value.dtype, key.device)
    step[module.layer_idx] = LayerShape(*sizes, *where, float(scale), float(softcap or 0.0))
    return value.new_zeros(1, query.shape[2], query.shape[1], value_dim), None


def _window_as_mask(
    batch_size: int, q_length: int, kv_length: int, local_size: int | None = None, **ignored: Any
) -> Tensor:
    """A stand-in for the mask that tells PROBE the size of the window, 0 where there is none."""
    return torch.full((batch_size, 1, q_length, kv_length), local_size or 0)


def choose(
    attn_impl: str | None, layers: dict[int, LayerShape], library: ctypes.CDLL | None, block_size: int
) -> Attend:
    """Return the attention for these layers: by `attn_impl` where given (`sdpa`, `eager`: `gather`), else the fastest.

    `library` has the kernels for CPUs, where there are any.

    Raises UnsupportedModel where `flash_attn` is asked for and cannot be had.
    """
    shapes = set(layers.values())
    refusal = _refusal_of_flash(shapes, block_size)
    if attn_impl == "flash_attn" and refusal is not None:
        raise refusal
    if attn_impl in ("sdpa", "eager"):
        return attend_gather
    if refusal is None:
        return attend_varlen
    on_cpu = all(shape.device.type == "cpu" for shape in shapes)
    known = all(shape.dtype in (torch.float32, torch.bfloat16) for shape in shapes)
    square = all(shape.key_dim == shape.value_dim for shape in shapes)
    return KernelAttention(library) if library is not None and on_cpu and known and square else attend_gather


def _refusal_of_flash(shapes: set[LayerShape], block_size: int) -> UnsupportedModel | None:
    """Why `attend_varlen` cannot attend to these layers; None: it can."""
    on_cuda = all(shape.device.type == "cuda" for shape in shapes)
    if not on_cuda or any(shape.dtype not in (torch.float16, torch.bfloat16) for shape in shapes):
        message = "attn_impl flash_attn needs a CUDA device and float16 or bfloat16"
        return UnsupportedModel(message, param="attn_impl")
    if any(shape.kept is not None for shape in shapes):
        return UnsupportedModel("flash_attn reads no keys in 8 bits: leave one out", param="kv_cache_dtype")
    for shape in shapes:
        if shape.key_dim != shape.value_dim or shape.key_dim > FLASH_MOST_DIM or shape.key_dim % FLASH_DIMS:
            dims = f"{shape.key_dim} and {shape.value_dim}"
            message = f"flash_attn needs keys and values of one size, a multiple of {FLASH_DIMS} up to {FLASH_MOST_DIM}"
            return UnsupportedModel(f"{message}, and this model has {dims}", param="attn_impl")
    if block_size % FLASH_BLOCK:
        message = f"flash_attn needs a block_size that is a multiple of {FLASH_BLOCK}: it is {block_size}"
        return UnsupportedModel(message, param="block_size")
    return None


class KernelAttention:
    """The C kernel. Calls release the GIL."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {torch.float32: library.paged_attention_float, torch.bfloat16: library.paged_attention_bf16}

    def __call__(self, q: Tensor, layer: int, step: StepContext, scale: float, window: int, softcap: float) -> Tensor:
        out = torch.empty_like(q)
        tokens, heads, dim = q.shape
        cache = step.cache
        keys, values = cache.keys[layer], cache.values[layer]
        scales = (cache.key_scales.get(layer), cache.value_scales.get(layer))
        tensors = (q, keys, values, out, step.block_table, step.rows, step.lens, *scales)
        sizes = (tokens, heads, keys.shape[2], dim, keys.shape[1], step.block_table.shape[1])
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        if self._functions[q.dtype](*pointers, number_of(cache.layers[layer].kept), *sizes, scale, window, softcap):
            raise MemoryError("no memory for attention scores")
        return out


def attend_varlen(q: Tensor, layer: int, step: StepContext, scale: float, window: int, softcap: float) -> Tensor:
    """FlashAttention over block tables (Dao 2023, arXiv:2307.08691), through torch."""
    from torch.nn.attention.varlen import varlen_attn

    if softcap:
        return attend_gather(q, layer, step, scale, window, softcap)
    keys, values = step.cache.keys[layer], step.cache.values[layer]
    out: Tensor = varlen_attn(
        q,
        keys,
        values,
        step.cumulative,
        None,
        step.longest_query,
        step.longest_key,
        scale=scale,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=q.shape[1] != keys.shape[2],
        seqused_k=step.segment_lens,
        block_table=step.block_table,
        num_splits=1,  # results do not depend on what else is in the batch
    )
    return out


def attend_gather(q: Tensor, layer: int, step: StepContext, scale: float, window: int, softcap: float) -> Tensor:
    """One sequence after another: collect its blocks, attend with a mask."""
    out = q.new_empty(*q.shape[:2], step.cache.values[layer].shape[-1])
    for s, (start, end) in enumerate(zip(step.starts, step.starts[1:], strict=False)):
        length = int(step.lens[end - 1])
        blocks = step.block_table[s, : -(-length // step.cache.block_size)].long()
        k, v = (states[:length] for states in step.cache.read(layer, blocks, q.dtype))
        out[start:end] = _attend_one(q[start:end], k, v, step.lens[start:end], scale, window, softcap)
    return out


def _attend_one(q: Tensor, k: Tensor, v: Tensor, lens: Tensor, scale: float, window: int, softcap: float) -> Tensor:
    """(tokens, heads, dim) queries of one sequence over its (length, kv_heads, dim) keys; token t sees lens[t] of
    them."""
    at = torch.arange(k.shape[0], device=k.device)[None]
    seen = at < lens[:, None]
    if window:
        seen &= at >= lens[:, None] - window
    groups = q.shape[1] // k.shape[1]
    q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
    if groups > 1:
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    if not softcap:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen, scale=scale)[0].transpose(0, 1)
    scores = torch.tanh(q.float() @ k.float().transpose(1, 2) * scale / softcap) * softcap
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).to(v.dtype)
    return (weights @ v).transpose(0, 1)
