"""What every engine with a model was asked for, in the form that crosses to its process."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from engines.params.deploy import DeployParams


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """None means the engine's own choice."""

    model: str
    """A folder or a hub id."""
    revision: str | None = None
    token: str | None = None
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """None: the checkpoint's; on a CPU that has no instructions for that, float32."""
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    enable_prefix_caching: bool = True
    seed: int | None = None
    """Seed of the random streams of requests that bring none of their own; None: a fresh one each start."""
    max_logprobs: int = 20
    max_loras: int = 8
    """0: no adapters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the server waits for an engine's process, and how often it starts it again."""

    start_seconds: float = 1800.0
    """Seconds to load the model."""
    step_seconds: float = 300.0
    """Seconds for a step while there is work, and for a heartbeat in any case."""
    restarts: int = 10
    """Restarts in a row, without a life that lasted."""


PATIENCE = Patience()


def patience_of(params: "DeployParams") -> Patience:
    return Patience(
        start_seconds=params.engine_start_timeout,
        step_seconds=params.engine_watchdog_timeout,
        restarts=params.engine_max_restarts,
    )


def settings_of(params: "DeployParams") -> dict[str, Any]:
    """The fields of `EngineConfig`, as the parameters say."""
    assert params.model is not None, "deploy has checked it"
    return {
        "model": params.model,
        "revision": params.model_revision,
        "token": params.hub_token,
        "dtype": params.torch_dtype,
        "max_model_len": params.max_model_len or params.max_length,
        "max_num_seqs": params.max_batch_size or params.max_num_seqs,
        "max_num_batched_tokens": params.max_num_batched_tokens,
        "block_size": params.block_size,
        "enable_prefix_caching": params.enable_prefix_caching,
        "seed": params.seed if "seed" in params.model_fields_set else None,
        "max_logprobs": params.max_logprobs,
        "max_loras": params.max_loras,
    }
