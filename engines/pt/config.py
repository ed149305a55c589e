"""What the pt engine was asked for, in the form that crosses to its process."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class PtConfig:
    """None means automatic; what that came to is logged when the engine starts."""

    model: str
    """A folder or a hub id."""
    revision: str | None = None
    token: str | None = None
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    device_map: str | dict[str, Any] | None = None
    attn_impl: Literal["flash_attn", "sdpa", "eager"] | None = None
    rope_scaling: Literal["linear", "dynamic"] | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    kv_cache_memory: float | None = None
    """GiB."""
    gpu_memory_utilization: float = 0.9
    """Share of a CUDA device's memory for weights and cache together."""
    enable_prefix_caching: bool = True
    threads: int | None = None
    seed: int | None = None
    """Of the random streams of requests that bring no seed of their own; None: a fresh one each start."""
    max_logprobs: int = 20
    max_loras: int = 8
    max_cpu_loras: int | None = None
    max_lora_rank: int = 64
