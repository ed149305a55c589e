"""What is refused of a request whatever its prompt says: fields that exclude each other, and what is not supported."""

from dataclasses import fields
from typing import Any

from engines.capabilities import Capabilities
from engines.errors import InvalidRequest, UnsupportedParameter
from engines.types import BATCH_PRIORITY, GenerationRequest, Sampling
from server.http.errors import InsufficientPermissions
from server.http.keys.caller import Caller
from server.openai.schema import GenerationFields


def check_fields(body: GenerationFields, caller: Caller) -> None:
    """Refuse fields that exclude each other, and what is not for this caller, whatever the model.

    Raises InvalidRequest, UnsupportedParameter, InsufficientPermissions.
    """
    if body.priority < 0 and not caller.is_admin:
        raise InsufficientPermissions(
            f"'priority' is {body.priority}: only a key with the role admin may go before others (below 0).",
            param="priority",
        )
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise UnsupportedParameter("'prompt_logprobs' cannot be streamed.", param="prompt_logprobs")
    _check_supported(body)
    _tell_without_effect(body)


UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "This model gives text only."),
    "modalities": ((["text"],), "This model gives text only."),
    "web_search_options": ((), "There is no web search here."),
    "moderation": ((), "There is no moderation here."),
    "guided_json": ((), "Use 'structured_outputs'."),
    "guided_regex": ((), "Use 'structured_outputs'."),
    "guided_choice": ((), "Use 'structured_outputs'."),
    "guided_grammar": ((), "Use 'structured_outputs'."),
    "logits_processors": ((), "Clients bring no code."),
}
"""Fields that would change an answer and are not supported, the values that ask for nothing, and why."""

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "service_tier": ("auto", "default"),
}
"""Fields that change no answer, here or elsewhere, and the values that are as asked for even so."""


def _check_supported(body: GenerationFields) -> None:
    for name in UNSUPPORTED.keys() & body.model_fields_set:
        allowed, reason = UNSUPPORTED[name]
        if getattr(body, name) not in allowed:
            raise UnsupportedParameter(f"{name!r} is not supported. {reason}", param=name)


def _tell_without_effect(body: GenerationFields) -> None:
    for name, usual in WITHOUT_EFFECT.items():
        if name in body.model_fields_set and getattr(body, name) not in usual:
            body.ignored.add(name)
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        body.ignored.add("stream_options.include_obfuscation")


WIRE_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "bad_words_ids": "bad_words",
    "adapter": "model",
    "thinking_budget": "thinking_token_budget",
}


def check_capabilities(request: GenerationRequest, capabilities: Capabilities, body: GenerationFields) -> None:
    """Refuse what this engine does not support, by the name that the client gave it."""
    names = {**WIRE_NAMES, "structured": _constrained_by(body)}
    sampling = request.sampling
    asked = {entry.name for entry in fields(sampling) if getattr(sampling, entry.name) != _neutral(entry.name)}
    asked |= {name for name, neutral in NEUTRAL_REQUEST.items() if getattr(request, name) != neutral}
    if request.priority == BATCH_PRIORITY:
        asked.discard("priority")  # nobody asked for it: where the engine knows none, requests of batches are as others
    refused = asked & capabilities.unsupported
    if refused:
        param = names.get(name := min(refused), name)
        raise UnsupportedParameter(f"This engine does not support {param!r}.", param=param)
    if sampling.structured is not None:
        _check_structured(sampling.structured.kind, sampling.num_beams, capabilities, param=names["structured"])
    if sampling.num_beams > capabilities.max_beams:
        raise UnsupportedParameter(
            f"This engine searches with at most {capabilities.max_beams} beams.", param="num_beams"
        )


def _check_structured(kind: str, num_beams: int, capabilities: Capabilities, param: str) -> None:
    if kind not in capabilities.structured:
        raise UnsupportedParameter(
            f"{param!r} asks for output that is constrained by a {kind}; this engine and model cannot do that.",
            param=param,
        )
    if num_beams > 1:
        raise UnsupportedParameter(f"{param!r} cannot be combined with a beam search.", param=param)


def _constrained_by(body: GenerationFields) -> str:
    """The field that asks for a constraint on the output, where one does."""
    if body.structured_outputs is not None:
        return "structured_outputs"
    return "tools" if body.response_format in (None, {"type": "text"}) else "response_format"


NEUTRAL_SAMPLING = Sampling(max_new_tokens=0)
NEUTRAL_REQUEST = {"n": 1, "adapter": None, "priority": 0, "cache_salt": None}


def _neutral(name: str) -> Any:
    return getattr(NEUTRAL_SAMPLING, name)
