"""What the LMDeploy engine was asked for, in the form that crosses to its process."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from engines.errors import UnsupportedModel
from engines.process.config import EngineConfig, settings_of

if TYPE_CHECKING:
    from engines.params.deploy import DeployParams


@dataclass(frozen=True, slots=True, kw_only=True)
class LmdeployConfig(EngineConfig):
    backend: Literal["pytorch", "turbomind"] = "pytorch"
    tp: int = 1
    cache_max_entry_count: float = 0.8
    """Share of the memory that the weights leave free."""
    quant_policy: int = 0
    enforce_eager: bool = False
    max_lora_rank: int = 64


def lmdeploy_config(params: "DeployParams") -> LmdeployConfig:
    """What the LMDeploy engine reads of the parameters of `deploy`."""
    settings = settings_of(params)
    return LmdeployConfig(
        **settings | {"max_model_len": params.session_len or settings["max_model_len"]},
        backend=params.lmdeploy_backend,
        tp=params.tp,
        cache_max_entry_count=params.cache_max_entry_count,
        quant_policy=params.quant_policy,
        enforce_eager=params.enforce_eager,
        max_lora_rank=params.max_lora_rank,
    )


def for_several_owners(config: LmdeployConfig, params: "DeployParams") -> LmdeployConfig:
    """The configuration for several owners: TurboMind's prefix cache has no salt to keep them apart, so it is off.

    Raises UnsupportedModel where the parameters ask for it.
    """
    if config.backend != "turbomind" or not config.enable_prefix_caching:
        return config
    if "enable_prefix_caching" in params.model_fields_set:
        message = "TurboMind cannot keep the cached prefixes of several keys apart: leave out --enable_prefix_caching"
        raise UnsupportedModel(message, param="enable_prefix_caching")
    return replace(config, enable_prefix_caching=False)
