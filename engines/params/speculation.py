"""Speculative decoding: guesses at the next tokens, which a step computes beside those that are certain."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from engines.params.about import A_FILE, About
from engines.params.base import JsonObject, Params


class SpeculationParams(Params):
    """Speculative decoding, with vLLM's words."""

    speculative_config: Annotated[JsonObject | None, About(engines=("pt", "vllm"), not_in_api=A_FILE)] = None
    """How several tokens are guessed at and checked in one step, as vLLM's JSON object: `{"method": "ngram",
    "num_speculative_tokens": 8, "prompt_lookup_min": 2, "prompt_lookup_max": 5}` guesses what followed where the last
    tokens stood before, in the prompt or the output. pt does that; vLLM knows more methods. No guesses unless given,
    except by a request's `prediction`."""


class NgramConfig(Params):
    """What pt reads of `speculative_config`. Defaults are vLLM's."""

    method: Literal["ngram", "[ngram]"]
    num_speculative_tokens: int = Field(ge=1, le=1024)
    """The most guesses at a time."""
    prompt_lookup_min: int | None = Field(None, ge=1)
    """How many of the last tokens must have stood there before. As `prompt_lookup_max` unless given, or 5."""
    prompt_lookup_max: int | None = Field(None, ge=1)
    """How many are compared, to choose among several places. As `prompt_lookup_min` unless given, or 5."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.shortest > self.longest:
            raise ValueError(f"prompt_lookup_min {self.shortest} is more than prompt_lookup_max {self.longest}")
        return self

    @property
    def shortest(self) -> int:
        return self.prompt_lookup_min or self.prompt_lookup_max or 5

    @property
    def longest(self) -> int:
        return self.prompt_lookup_max or self.prompt_lookup_min or 5


def unfit_for_pt(config: dict[str, Any]) -> str | None:
    """Why pt refuses a `speculative_config`; None where it does not."""
    method = config.get("method")
    if method is not None and method not in ("ngram", "[ngram]"):
        return f"the engine pt knows the method ngram alone; {method} is for vllm"
    try:
        NgramConfig.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            return f"the engine pt does not know {name} here"
        message = first["msg"].removeprefix("Value error, ")
        return f"{name}: {message}" if name else message
    return None
