"""What the LMDeploy engine was asked for, in the form that crosses to its process."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engines.errors import UnsupportedModel

if TYPE_CHECKING:
    from engines.params.deploy import DeployParams


@dataclass(frozen=True, slots=True, kw_only=True)
class LmdeployConfig:
    """None means as LMDeploy has it."""

    model: str
    """A folder or a hub id."""
    revision: str | None = None
    token: str | None = None
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    backend: Literal["pytorch", "turbomind"] = "pytorch"
    tp: int = 1
    session_len: int | None = None
    cache_max_entry_count: float = 0.8
    """Share of the memory that the weights leave free."""
    quant_policy: int = 0
    max_batch_size: int = 256
    eager_mode: bool = False
    block_size: int | None = None
    enable_prefix_caching: bool = True
    max_prefill_token_num: int | None = None
    seed: int | None = None
    """Of the random streams of requests that bring no seed of their own; None: a fresh one each start."""
    max_logprobs: int = 20
    max_loras: int = 8
    max_lora_rank: int = 64


def lmdeploy_config(params: "DeployParams") -> LmdeployConfig:
    """What the LMDeploy engine reads of the parameters of `deploy`. Raises UnsupportedModel for one that has no use yet."""
    assert params.model is not None, "deploy has checked it"
    if params.vision_batch_size != 1:
        message = "vision_batch_size is about images, and requests with images are not served yet: leave it at 1"
        raise UnsupportedModel(message, param="vision_batch_size")
    return LmdeployConfig(
        model=params.model,
        revision=params.model_revision,
        token=params.hub_token,
        dtype=params.torch_dtype,
        backend=params.lmdeploy_backend,
        tp=params.tp,
        session_len=params.session_len or params.max_model_len or params.max_length,
        cache_max_entry_count=params.cache_max_entry_count,
        quant_policy=params.quant_policy,
        max_batch_size=params.max_batch_size or params.max_num_seqs,
        eager_mode=params.enforce_eager,
        block_size=params.block_size,
        enable_prefix_caching=params.enable_prefix_caching,
        max_prefill_token_num=params.max_num_batched_tokens,
        seed=params.seed if "seed" in params.model_fields_set else None,
        max_logprobs=params.max_logprobs,
        max_loras=params.max_loras,
        max_lora_rank=params.max_lora_rank,
    )
