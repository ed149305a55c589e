"""What the pt engine was asked for, in the form that crosses to its process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from engines.params.deploy import DeployParams


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


def pt_config(params: "DeployParams") -> PtConfig:
    """What the pt engine reads of the parameters."""
    assert params.model is not None, "deploy has checked it"
    return PtConfig(
        model=params.model,
        revision=params.model_revision,
        token=params.hub_token,
        dtype=params.torch_dtype,
        device_map=dict(params.device_map) if isinstance(params.device_map, Mapping) else params.device_map,
        attn_impl=params.attn_impl,
        rope_scaling=params.rope_scaling,
        max_model_len=params.max_model_len or params.max_length,
        max_num_seqs=params.max_batch_size or params.max_num_seqs,
        max_num_batched_tokens=params.max_num_batched_tokens,
        block_size=params.block_size,
        kv_cache_memory=params.kv_cache_memory,
        gpu_memory_utilization=params.gpu_memory_utilization,
        enable_prefix_caching=params.enable_prefix_caching,
        threads=params.threads,
        seed=params.seed if "seed" in params.model_fields_set else None,
        max_logprobs=params.max_logprobs,
        max_loras=params.max_loras,
        max_cpu_loras=params.max_cpu_loras,
        max_lora_rank=params.max_lora_rank,
    )
