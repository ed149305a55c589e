"""Sampling parameters that a request does not give: the server's, then those that the model's authors recommend."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.params.generation import GenerationParams


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """Defaults of sampling parameters; these are OpenAI's."""

    max_new_tokens: int | None = None
    """None: as many as fit the context in a chat, 16 in a completion."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    stop: tuple[str, ...] = ()


FROM_MODEL = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling_defaults(params: GenerationParams, generation_config: Mapping[str, Any]) -> SamplingDefaults:
    """`generation_config` holds what the model's generation_config.json says, and nothing of transformers' defaults."""
    from_model = {name: generation_config[name] for name in FROM_MODEL if generation_config.get(name) is not None}
    given = params.model_dump(
        include={"max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "num_beams"},
        exclude_none=True,
    )
    return SamplingDefaults(**{**from_model, **given}, stop=params.stop_words)
