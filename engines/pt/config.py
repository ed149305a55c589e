"""The settings of the pt engine, in the form that crosses to its process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from engines.checkpoint.quantization import Quantization, quantization_of
from engines.params.speculation import NgramConfig
from engines.process.config import EngineConfig, settings_of

if TYPE_CHECKING:
    from engines.params.deploy import DeployParams


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLookup:
    """Guesses at an output's next tokens: what followed where its last ones stood before. Names are vLLM's."""

    num_speculative_tokens: int
    """The most guesses at a time."""
    prompt_lookup_min: int
    """How many of the last tokens must have stood there."""
    prompt_lookup_max: int
    """How many are compared: of several places, the one where more of them stood is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PtConfig(EngineConfig):
    """None means automatic; what that came to is logged when the engine starts."""

    device_map: str | dict[str, Any] | None = None
    attn_impl: Literal["flash_attn", "sdpa", "eager"] | None = None
    rope_scaling: Literal["linear", "dynamic"] | None = None
    task_type: Literal["causal_lm", "seq_cls"] = "causal_lm"
    """A checkpoint that was saved as a model for sequence classification is one at any rate."""
    quantization: Quantization | None = None
    """None: weights as the checkpoint has them."""
    kv_cache_memory: float | None = None
    """GiB of KV cache."""
    kv_cache_dtype: str = "auto"
    """`auto`: keys and values are kept as they are."""
    gpu_memory_utilization: float = 0.9
    """Share of a CUDA device's memory for weights and cache together."""
    threads: int | None = None
    max_cpu_loras: int | None = None
    max_lora_rank: int = 64
    max_itl_slowdown: float | None = None
    """How many times as long a step may take, by estimate, as it would without prompts; None: any time."""
    prompt_lookup: PromptLookup | None = None
    """None: outputs are guessed at where their requests predict them, and nowhere else."""
    tempered_logprobs: bool = False
    """Logprobs of sampled tokens are of the distribution at the request's temperature, and not at 1: those that a
    training compares with its own."""


def prompt_lookup(speculative_config: Mapping[str, Any]) -> PromptLookup:
    config = NgramConfig.model_validate(speculative_config)
    return PromptLookup(
        num_speculative_tokens=config.num_speculative_tokens,
        prompt_lookup_min=config.shortest,
        prompt_lookup_max=config.longest,
    )


def pt_config(params: "DeployParams") -> PtConfig:
    """The settings that the pt engine takes from the parameters."""
    return PtConfig(
        **settings_of(params),
        device_map=dict(params.device_map) if isinstance(params.device_map, Mapping) else params.device_map,
        attn_impl=params.attn_impl,
        rope_scaling=params.rope_scaling,
        task_type=params.task_type,
        quantization=quantization_of(params),
        kv_cache_memory=params.kv_cache_memory,
        kv_cache_dtype=params.kv_cache_dtype,
        gpu_memory_utilization=params.gpu_memory_utilization,
        threads=params.threads,
        max_cpu_loras=params.max_cpu_loras,
        max_lora_rank=params.max_lora_rank,
        max_itl_slowdown=params.max_itl_slowdown,
        prompt_lookup=None if params.speculative_config is None else prompt_lookup(params.speculative_config),
    )
