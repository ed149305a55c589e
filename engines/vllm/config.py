"""What vLLM was asked for, in the form that crosses to its process."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.process.config import EngineConfig, settings_of

if TYPE_CHECKING:
    from engines.params.deploy import DeployParams


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmConfig(EngineConfig):
    torchao_bits: int | None = None
    """Bits of each weight that torchao quantises. None: weights as the checkpoint has them."""
    kv_cache_memory: float | None = None
    """GiB. None: on a GPU what `gpu_memory_utilization` leaves; on a CPU as `kv_cache_bytes` says."""
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    disable_custom_all_reduce: bool = False
    enforce_eager: bool = False
    threads: int | None = None
    """None: one for each physical core."""
    max_lora_rank: int = 16
    speculative_config: dict[str, Any] | None = None
    """vLLM's own."""
    enable_sleep_mode: bool = False
    """Whether the engine can give its GPU memory back for a time. It takes memory from an allocator of its own then."""


def vllm_config(params: "DeployParams") -> VllmConfig:
    """What vLLM reads of the parameters."""
    named_as_elsewhere = "max_lora_rank" in params.model_fields_set
    return VllmConfig(
        **settings_of(params),
        torchao_bits=params.quant_bits if params.quant_method == "torchao" else None,
        kv_cache_memory=params.kv_cache_memory,
        kv_cache_dtype=params.kv_cache_dtype,
        gpu_memory_utilization=params.gpu_memory_utilization,
        tensor_parallel_size=params.tensor_parallel_size,
        pipeline_parallel_size=params.pipeline_parallel_size,
        disable_custom_all_reduce=params.disable_custom_all_reduce,
        enforce_eager=params.enforce_eager,
        threads=params.threads,
        max_lora_rank=params.max_lora_rank if named_as_elsewhere else params.vllm_max_lora_rank,
        speculative_config=params.speculative_config,
        enable_sleep_mode=params.enable_sleep_mode,
    )
