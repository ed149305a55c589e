"""What vLLM was asked for, in the form that crosses to its process."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from engines.params.deploy import DeployParams


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmConfig:
    """None means vLLM's own choice, unless said otherwise."""

    model: str
    """A folder or a hub id."""
    revision: str | None = None
    token: str | None = None
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """None: the checkpoint's, but float32 on a CPU that has no instructions for that."""
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    kv_cache_memory: float | None = None
    """GiB. None: on a GPU what `gpu_memory_utilization` leaves; on a CPU as much as the weights take, 0.5 to 4 GiB, and at
    most a quarter of the free memory."""
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    disable_custom_all_reduce: bool = False
    enforce_eager: bool = False
    limit_mm_per_prompt: dict[str, int] | None = None
    threads: int | None = None
    """None: one for each physical core."""
    seed: int | None = None
    """Of the random streams of requests that bring no seed of their own; None: a fresh one each start."""
    max_logprobs: int = 20
    max_loras: int = 8
    """0: no adapters, which makes the base model faster, above all on a CPU."""
    max_lora_rank: int = 16
    enable_sleep_mode: bool = False
    """Whether the engine can give its GPU memory back for a time. It takes memory from an allocator of its own then."""


def vllm_config(params: "DeployParams") -> VllmConfig:
    """What vLLM reads of the parameters."""
    assert params.model is not None, "deploy has checked it"
    named_as_elsewhere = "max_lora_rank" in params.model_fields_set
    return VllmConfig(
        model=params.model,
        revision=params.model_revision,
        token=params.hub_token,
        dtype=params.torch_dtype,
        max_model_len=params.max_model_len or params.max_length,
        max_num_seqs=params.max_batch_size or params.max_num_seqs,
        max_num_batched_tokens=params.max_num_batched_tokens,
        block_size=params.block_size,
        kv_cache_memory=params.kv_cache_memory,
        gpu_memory_utilization=params.gpu_memory_utilization,
        enable_prefix_caching=params.enable_prefix_caching,
        tensor_parallel_size=params.tensor_parallel_size,
        pipeline_parallel_size=params.pipeline_parallel_size,
        disable_custom_all_reduce=params.disable_custom_all_reduce,
        enforce_eager=params.enforce_eager,
        limit_mm_per_prompt=params.limit_mm_per_prompt,
        threads=params.threads,
        seed=params.seed if "seed" in params.model_fields_set else None,
        max_logprobs=params.max_logprobs,
        max_loras=params.max_loras,
        max_lora_rank=params.max_lora_rank if named_as_elsewhere else params.vllm_max_lora_rank,
        enable_sleep_mode=params.enable_sleep_mode,
    )
