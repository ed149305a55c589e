"""Wire requests to engine requests: whose default counts, and what this model and engine cannot honour.

A value comes from the request, else from the server's parameters, else from the model's generation_config.json, else
from OpenAI's defaults.
"""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from engines.capabilities import Capabilities
from engines.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from engines.text.output_text import TextOptions
from engines.types import BATCH_PRIORITY, GenerationRequest, Sampling, Structured
from server.model.defaults import SamplingDefaults
from server.openai.conversation import check_conversation
from server.openai.schema import ChatRequest, CompletionRequest, GenerationFields

Value = TypeVar("Value")

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for completions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the engine can do, and the most logprobs that the server gives."""

    capabilities: Capabilities
    max_logprobs: int


def check_request(body: GenerationFields) -> None:
    """Refuse fields that exclude each other, whatever the model."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        raise UnsupportedParameter("Streams are not obfuscated.", param="stream_options.include_obfuscation")
    if body.prompt_logprobs is not None and body.stream:
        raise UnsupportedParameter("'prompt_logprobs' cannot be streamed.", param="prompt_logprobs")
    if isinstance(body, ChatRequest):
        _check_chat(body)
    if isinstance(body, CompletionRequest):
        _check_completion(body)


UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "This model gives text only."),
    "modalities": ((["text"],), "This model gives text only."),
    "web_search_options": ((), "There is no web search here."),
    "prediction": ((), "Predicted outputs are not supported."),
    "moderation": ((), "There is no moderation here."),
    "store": ((False,), "Answers are not stored."),
    "service_tier": (("auto", "default"), "There is only the default service tier."),
    "verbosity": (("medium",), "Models of this server have no verbosity; say it in a message."),
    "prompt_cache_options": ((), "The prompt cache has no options."),
    "prompt_cache_retention": (("in_memory",), "The prompt cache is in memory only."),
    "functions": ((), "'functions' is deprecated; use 'tools'."),
    "function_call": ((), "'function_call' is deprecated; use 'tool_choice'."),
    "suffix": ((), "Text cannot be inserted before a suffix."),
}
"""Fields of OpenAI's that cannot be honoured, the values that ask for nothing, and why."""


def _check_supported(body: GenerationFields) -> None:
    for name in UNSUPPORTED.keys() & body.model_fields_set:
        allowed, reason = UNSUPPORTED[name]
        if getattr(body, name) not in allowed:
            raise UnsupportedParameter(f"{name!r} cannot be honoured. {reason}", param=name)


def _check_chat(body: ChatRequest) -> None:
    _check_supported(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("'logprobs' must be true when 'top_logprobs' is given.", param="top_logprobs")
    if body.tools is None and body.parallel_tool_calls is not None:
        raise InvalidRequest("'parallel_tool_calls' is only allowed with 'tools'.", param="parallel_tool_calls")
    check_conversation(body, body.messages)


def _check_completion(body: CompletionRequest) -> None:
    _check_supported(body)
    if body.best_of is not None and body.best_of < body.n:
        raise InvalidRequest(f"'best_of' must be at least 'n', which is {body.n}.", param="best_of")
    if body.best_of is not None and body.best_of > body.n and body.stream:
        raise InvalidRequest("'best_of' above 'n' cannot be streamed: the best are known at the end.", param="best_of")


def to_sampling(
    body: GenerationFields,
    defaults: SamplingDefaults,
    limits: Limits,
    *,
    prompt_length: int,
    logprobs: int | None,
    structured: Structured | None = None,
    bad_words_ids: tuple[tuple[int, ...], ...] = (),
) -> Sampling:
    """The request's sampling for one of its prompts; raises where it does not fit the model or the engine."""
    capabilities = limits.capabilities
    max_new_tokens = _max_new_tokens(body, defaults, capabilities, prompt_length)
    num_beams = _num_beams(body, defaults)
    top_k = max(0, _first(body.top_k, defaults.top_k))
    top_p = _first(body.top_p, defaults.top_p)
    if top_p == 0:
        top_k, top_p = 1, 1.0  # nothing but the likeliest token
    _check_logprobs("prompt_logprobs", body.prompt_logprobs, limits)
    return Sampling(
        max_new_tokens=max_new_tokens,
        min_new_tokens=_min_new_tokens(body, max_new_tokens),
        temperature=0.0 if _is_search(body, num_beams) else _first(body.temperature, defaults.temperature),
        top_k=top_k,
        top_p=top_p,
        min_p=defaults.min_p if "min_p" not in body.model_fields_set else body.min_p,
        repetition_penalty=_first(body.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_logit_bias(body.logit_bias, capabilities),
        bad_words_ids=bad_words_ids,
        allowed_token_ids=_token_ids("allowed_token_ids", body.allowed_token_ids, capabilities),
        stop_token_ids=_token_ids("stop_token_ids", body.stop_token_ids, capabilities) or (),
        ignore_eos=body.ignore_eos,
        seed=body.seed,
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
        structured=structured,
        num_beams=num_beams,
        length_penalty=_length_penalty(body, num_beams),
    )


def template_kwargs(body: ChatRequest, template: str) -> dict[str, Any]:
    """The variables for the chat template; `reasoning_effort` is one where the template knows it, or can be told whether
    to think at all."""
    effort = body.reasoning_effort
    if effort is None:
        return body.chat_template_kwargs
    if "reasoning_effort" in template:
        return {"reasoning_effort": effort, **body.chat_template_kwargs}
    if "enable_thinking" in template and effort in ("none", "medium"):
        return {"enable_thinking": effort != "none", **body.chat_template_kwargs}
    if effort == "none" and "think" not in template.lower():
        return body.chat_template_kwargs  # a model that does not reason anyway
    raise UnsupportedParameter(f"This model has no reasoning effort {effort!r}.", param="reasoning_effort")


def bad_words_ids(words: list[str], tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """Each word's tokens, at the beginning of a text and after a space: most tokenizers spell the two differently."""
    spelt = [tokenizer.encode(text, add_special_tokens=False) for word in words for text in (word, f" {word}")]
    return tuple(dict.fromkeys(tuple(ids) for ids in spelt if ids))


def to_text_options(body: GenerationFields, defaults: SamplingDefaults, **options: Any) -> TextOptions:
    return TextOptions(
        stop=(*(body.stop or ()), *defaults.stop),
        include_stop_str_in_output=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        min_tokens=body.min_tokens,
        **options,
    )


WIRE_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "bad_words_ids": "bad_words",
    "adapter": "model",
}


def check_capabilities(request: GenerationRequest, capabilities: Capabilities, body: GenerationFields) -> None:
    """Refuse what this engine cannot honour, by the name that the client gave it."""
    names = {**WIRE_NAMES, "structured": _constrained_by(body)}
    sampling = request.sampling
    asked = {entry.name for entry in fields(sampling) if getattr(sampling, entry.name) != _neutral(entry.name)}
    asked |= {name for name, neutral in NEUTRAL_REQUEST.items() if getattr(request, name) != neutral}
    if request.priority == BATCH_PRIORITY:
        asked.discard("priority")  # nobody asked for it: where the engine knows none, requests of batches are as others
    refused = asked & capabilities.unsupported
    if refused:
        param = names.get(name := min(refused), name)
        raise UnsupportedParameter(f"This engine cannot honour {param!r}.", param=param)
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
NEUTRAL_REQUEST = {"n": 1, "adapter": None, "priority": 0}


def _neutral(name: str) -> Any:
    return getattr(NEUTRAL_SAMPLING, name)


def chat_logprobs(body: ChatRequest, limits: Limits) -> int | None:
    """How many top logprobs each token gets; None: not even its own."""
    _check_logprobs("top_logprobs", body.top_logprobs, limits)
    return (body.top_logprobs or 0) if body.logprobs else None


def completion_logprobs(body: CompletionRequest, limits: Limits) -> int | None:
    _check_logprobs("logprobs", body.logprobs, limits)
    return body.logprobs


def _check_logprobs(name: str, count: int | None, limits: Limits) -> None:
    most = min(limits.capabilities.max_logprobs, limits.max_logprobs)
    if count is not None and count > most:
        raise InvalidRequest(f"{name!r} must be at most {most}, not {count}.", param=name)


def _max_new_tokens(
    body: GenerationFields, defaults: SamplingDefaults, capabilities: Capabilities, prompt_length: int
) -> int:
    room = capabilities.max_model_len - prompt_length
    asked = body.max_tokens
    if isinstance(body, ChatRequest) and body.max_completion_tokens is not None:
        asked = body.max_completion_tokens
    if asked is None:
        otherwise = room if isinstance(body, ChatRequest) else COMPLETION_MAX_TOKENS
        return min(_first(defaults.max_new_tokens, otherwise), room)
    if asked > room:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {capabilities.max_model_len} tokens. However, you requested "
            f"{prompt_length + asked} tokens ({prompt_length} in the prompt, {asked} for the completion). "
            "Please shorten one of them.",
            param="messages" if isinstance(body, ChatRequest) else "prompt",
        )
    return max(asked, 1)  # 0 scores the prompt: whoever asks for it drops the token


def _min_new_tokens(body: GenerationFields, max_new_tokens: int) -> int:
    if body.min_tokens > max_new_tokens:
        raise InvalidRequest(
            f"'min_tokens' is {body.min_tokens}, but there are at most {max_new_tokens} tokens to generate.",
            param="min_tokens",
        )
    return body.min_tokens


def _first(value: Value | None, otherwise: Value) -> Value:
    return otherwise if value is None else value


def _logit_bias(bias: dict[str, float], capabilities: Capabilities) -> dict[int, float]:
    return {_token_id(key, capabilities): value for key, value in bias.items()}


def _token_id(key: str, capabilities: Capabilities) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < capabilities.vocab_size):
        raise InvalidRequest(
            f"{key[:20]!r} is not a token id: 'logit_bias' takes ids below {capabilities.vocab_size}.",
            param="logit_bias",
        )
    return int(key)


def _token_ids(name: str, token_ids: list[int] | None, capabilities: Capabilities) -> tuple[int, ...] | None:
    if token_ids is None:
        return None
    wrong = [token_id for token_id in token_ids if not 0 <= token_id < capabilities.vocab_size]
    if wrong:
        raise InvalidRequest(
            f"{wrong[0]} is not a token id: {name!r} takes ids below {capabilities.vocab_size}.", param=name
        )
    return tuple(token_ids)


# --- beam search


def _num_beams(body: GenerationFields, defaults: SamplingDefaults) -> int:
    """As many as asked for; with vLLM's `use_beam_search` alone, as many as there are outputs."""
    if body.use_beam_search is False:
        if body.num_beams is not None and body.num_beams > 1:
            raise InvalidRequest("'num_beams' above 1 is a beam search.", param="use_beam_search")
        return 1
    beams = _first(body.num_beams, defaults.num_beams)
    if body.use_beam_search and body.num_beams is None:
        beams = max(beams, body.n)
    if beams > 1:
        _check_beams(body, beams)
    return beams


def _check_beams(body: GenerationFields, beams: int) -> None:
    if body.n > beams:
        raise InvalidRequest(f"'n' is {body.n}, but a search with {beams} beams has {beams} outputs.", param="n")
    sampled = {"temperature": (0, 1), "top_p": (1,), "top_k": (-1, 0), "min_p": (0,), "seed": ()}
    for name, neutral in sampled.items():
        if name in body.model_fields_set and getattr(body, name) not in neutral:
            raise InvalidRequest(f"{name!r} has no meaning in a beam search, which does not sample.", param=name)


def _is_search(body: GenerationFields, beams: int) -> bool:
    """A beam search takes the likeliest; with one beam that is what greedy decoding does."""
    return beams > 1 or body.use_beam_search is True


def _length_penalty(body: GenerationFields, beams: int) -> float:
    if body.length_penalty != 1 and beams == 1:
        raise InvalidRequest("'length_penalty' is for beam searches: set 'num_beams'.", param="length_penalty")
    return body.length_penalty
