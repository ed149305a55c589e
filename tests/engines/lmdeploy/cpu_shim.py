"""Lets the real LMDeploy PyTorch engine run on a CPU: its loop, scheduler, paging, sampler, model code and LoRA
routing.

What is not real: streams, events and the memory of CUDA, the device's name, and four kernels (attention, LoRA,
experts, sampling), which become plain torch on LMDeploy's own default operators. LMDeploy itself calls devices other
than CUDA patches.
"""

import contextlib
import os
from types import SimpleNamespace
from typing import Any

os.environ["LMDEPLOY_SKIP_WARMUP"] = "1"

import torch  # LMDeploy reads the variable when it is imported
from torch.nn.functional import scaled_dot_product_attention, silu
from torch.overrides import TorchFunctionMode

MEMORY = 96 * 2**20
"""What the device is said to have, in bytes: enough for a few thousand tokens of a tiny model."""


class CudaIsCpu(TorchFunctionMode):
    """In torch's functions, the device "cuda" means the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("cuda", "pin_memory"):
            return args[0]
        if name == "record_stream":
            return None
        kwargs |= {"pin_memory": False} if "pin_memory" in kwargs else {}
        kwargs |= {"device": _cpu_for(kwargs["device"])} if "device" in kwargs else {}
        if name == "to":
            args = tuple(_cpu_for(value) for value in args)
        return func(*args, **kwargs)


def _cpu_for(value: Any) -> Any:
    is_cuda = (isinstance(value, str) and value.startswith("cuda")) or (
        isinstance(value, torch.device) and value.type == "cuda"
    )
    return torch.device("cpu") if is_cuda else value


class Stream:
    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def query(self) -> bool:
        return True


class Event:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


def install() -> None:
    """For the rest of this process's life, in this thread."""
    _replace_cuda()
    CudaIsCpu().__enter__()
    _replace_kernels()
    _replace_checks()


def _replace_cuda() -> None:
    cuda: Any = torch.cuda
    stream = Stream()
    cuda.Stream, cuda.Event = Stream, Event
    cuda.current_stream = lambda *_: stream
    cuda.stream = lambda _: contextlib.nullcontext()
    for name in ("synchronize", "empty_cache", "set_device"):
        setattr(cuda, name, lambda *_: None)
    cuda.is_available = lambda: True
    cuda.current_device = lambda: 0
    cuda.device_count = lambda: 1
    cuda.mem_get_info = lambda *_: (MEMORY, MEMORY)
    cuda.get_device_properties = lambda *_: SimpleNamespace(
        multi_processor_count=1, major=8, minor=0, name="a CPU", total_memory=MEMORY, warp_size=32
    )
    cuda.get_device_capability = lambda *_: (8, 0)
    torch._C._cuda_clearCublasWorkspaces = lambda: None


def _replace_checks() -> None:
    from lmdeploy.messages import PytorchEngineConfig
    from lmdeploy.pytorch.engine.engine_checker import EngineChecker

    from engines.lmdeploy import library

    EngineChecker.handle = lambda self: None
    library.DTYPES.add("float32")
    check = PytorchEngineConfig.__post_init__

    def check_but_take_float32(self: Any) -> None:
        wanted, self.dtype = self.dtype, "auto"
        check(self)
        self.dtype = wanted

    PytorchEngineConfig.__post_init__ = check_but_take_float32


def _replace_kernels() -> None:
    from lmdeploy.pytorch.backends import selector
    from lmdeploy.pytorch.backends.attention import AttentionImpl, PagedAttentionBuildSpec
    from lmdeploy.pytorch.backends.cuda.attention.default import (
        TritonAttentionMetadata,
        build_triton_attention_metadata,
    )
    from lmdeploy.pytorch.backends.cuda.step_metadata import CudaSequenceMetadata
    from lmdeploy.pytorch.backends.default import DefaultOpsBackend
    from lmdeploy.pytorch.backends.lora import LoRABuildSpec, LoRAImpl
    from lmdeploy.pytorch.backends.moe import FusedMoEBuildSpec, FusedMoEImpl
    from lmdeploy.pytorch.backends.multinomial_sampling import MultinomialSamplingBuildSpec, MultinomialSamplingImpl

    class Attention(AttentionImpl):
        """Writes the new keys and values to their pages, and attends to all of each sequence."""

        def forward(
            self, query: Any, key: Any, value: Any, k_cache: Any, v_cache: Any, attn_metadata: Any = None, **_: Any
        ) -> Any:
            page = k_cache.size(1)
            query, key, value = (tensor.flatten(0, -3) for tensor in (query, key, value))
            out = torch.empty(query.size(0), query.size(1), value.size(-1), dtype=query.dtype)
            start = 0
            lengths = zip(attn_metadata.q_seqlens.tolist(), attn_metadata.kv_seqlens.tolist(), strict=True)
            for sequence, (new, length) in enumerate(lengths):
                rows, places = slice(start, start + new), torch.arange(length)
                pages = attn_metadata.block_offsets[sequence].long()[places // page]
                at = (pages[length - new :], places[length - new :] % page)
                k_cache[at], v_cache[at] = key[rows], value[rows]
                keys, values = (cache[pages, places % page].transpose(0, 1)[None] for cache in (k_cache, v_cache))
                mask = torch.ones(new, length, dtype=torch.bool).tril(length - new)
                attended = scaled_dot_product_attention(
                    query[rows].transpose(0, 1)[None], keys, values, attn_mask=mask, scale=self.scale, enable_gqa=True
                )
                out[rows] = attended[0].transpose(0, 1)
                start += new
            return out

    class Lora(LoRAImpl):
        """Adds to each sequence's rows the update of its own adapter."""

        def forward(
            self,
            x: Any,
            lora_A: Any,
            lora_B: Any,
            base_output: Any,
            adapter_info: Any,
            ctx_mgr: Any,
            colwise: bool,
            is_tp: bool = True,
        ) -> Any:
            context = ctx_mgr.current_context()
            if context.local_adapter_ids is None:
                return base_output
            rows = x.flatten(0, -2)
            out = base_output[..., adapter_info.base_slice].flatten(0, -2).clone()
            start = 0
            for adapter, new in zip(context.local_adapter_ids.tolist(), context.q_seqlens.tolist(), strict=True):
                rank, offset = int(adapter_info.ranks[adapter]), int(adapter_info.rank_offsets[adapter])
                a, b = lora_A[offset : offset + rank], lora_B[offset : offset + rank]
                update = (rows[start : start + new] @ a.t()) @ b
                out[start : start + new] += update * float(adapter_info.scalings[adapter])
                start += new
            base_output[..., adapter_info.base_slice] = out.view_as(base_output[..., adapter_info.base_slice])
            return base_output

    class Experts(FusedMoEImpl):
        """Each row goes through its own experts, whose first matrix has those of gate and up one above the other."""

        def __init__(self, *, renormalize: bool) -> None:
            self._renormalize = renormalize

        def forward(self, x: Any, weights: Any, chosen: Any, gate_up: Any, down: Any, *_: Any, **__: Any) -> Any:
            if self._renormalize:
                weights = weights / weights.sum(-1, keepdim=True)
            out = torch.zeros_like(x)
            for expert in chosen.unique().tolist():
                row, place = (chosen == expert).nonzero(as_tuple=True)
                gate, up = (x[row] @ gate_up[expert].t()).chunk(2, dim=-1)
                out[row] += weights[row, place, None].to(x) * ((silu(gate) * up) @ down[expert].t())
            return out

    class Multinomial(MultinomialSamplingImpl):
        """As the CUDA kernel, a number that depends on seed and position alone decides."""

        def forward(self, scores: Any, seeds: Any, offsets: Any, indices: Any = None) -> Any:
            chosen = []
            for row, seed, offset in zip(scores.float(), seeds.tolist(), offsets.tolist(), strict=True):
                generator = torch.Generator().manual_seed(seed * 1_000_003 + offset)
                uniform = torch.rand((), generator=generator) * row.sum()
                chosen.append(torch.searchsorted(row.cumsum(0), uniform).clamp(max=len(row) - 1))
            at = torch.stack(chosen)[:, None]
            return (at if indices is None else indices.gather(1, at)).view(-1)

    class CpuBackend(DefaultOpsBackend):
        @staticmethod
        def get_name() -> str:
            return "cpu"

        @classmethod
        def build_op(cls, spec: Any, *, enable_deterministic: bool = False) -> Any:
            if isinstance(spec, PagedAttentionBuildSpec):
                return Attention(
                    num_heads=spec.num_heads,
                    head_size=spec.head_dim,
                    scale=spec.scale,
                    num_kv_heads=spec.num_kv_heads,
                    v_head_size=spec.v_head_dim,
                    sliding_window=spec.sliding_window,
                    causal=spec.causal,
                )
            if isinstance(spec, FusedMoEBuildSpec):
                return Experts(renormalize=spec.renormalize)
            ours = {LoRABuildSpec: Lora, MultinomialSamplingBuildSpec: Multinomial}
            if type(spec) in ours:
                return ours[type(spec)]()
            return super().build_op(spec, enable_deterministic=enable_deterministic)

        @staticmethod
        def get_attention_metadata_cls() -> type:
            return TritonAttentionMetadata

        @classmethod
        def update_step_context(cls, step_context: Any) -> Any:
            metadata = CudaSequenceMetadata.from_step_context(step_context)
            step_context.attn_metadata = build_triton_attention_metadata(
                cls.get_attention_metadata_cls(), step_context, metadata
            )
            return step_context

    selector._get_backend = lambda: CpuBackend
