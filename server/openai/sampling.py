"""How tokens are chosen for one prompt of a request: whose default counts, and what does not fit this model.

A value comes from the request, else from the server's parameters, else from the model's generation_config.json, else
from OpenAI's defaults.
"""

from typing import Any, TypeVar

from engines.capabilities import Capabilities
from engines.errors import InvalidRequest
from engines.text.request_check import context_length_exceeded
from engines.types import Sampling
from server.model.defaults import SamplingDefaults
from server.model.served import ServedModel
from server.openai.asked import Asked
from server.openai.schema import GenerationFields
from server.openai.sizes import longest_output

Value = TypeVar("Value")


def to_sampling(
    body: GenerationFields,
    asked: Asked,
    model: ServedModel,
    capabilities: Capabilities,
    prompt_length: int,
    bad_words_ids: tuple[tuple[int, ...], ...],
) -> Sampling:
    """Raises InvalidRequest where a value does not fit the model."""
    defaults = model.defaults
    logprobs = _logprobs(asked.logprobs_field, asked.logprobs, model, capabilities)
    longest = longest_output(body, asked, logprobs)
    max_new_tokens = _max_new_tokens(asked, defaults, capabilities, prompt_length, longest)
    num_beams = num_beams_of(body, defaults)
    top_k = max(0, _first(body.top_k, defaults.top_k))
    top_p = _first(body.top_p, defaults.top_p)
    if top_p == 0:
        top_k, top_p = 1, 1.0  # nothing but the likeliest token
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
        stop_token_ids=_stop_token_ids(body, asked, capabilities),
        ignore_eos=body.ignore_eos,
        seed=body.seed,
        logprobs=logprobs,
        prompt_logprobs=_logprobs("prompt_logprobs", asked.prompt_logprobs, model, capabilities),
        structured=asked.plan.structured,
        thinking_budget=asked.thinking_budget,
        num_beams=num_beams,
        length_penalty=_length_penalty(body, num_beams),
    )


def bad_words_ids(words: list[str], tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """Each word's tokens, at the beginning of a text and after a space: most tokenizers spell the two differently."""
    spelt = [tokenizer.encode(text, add_special_tokens=False) for word in words for text in (word, f" {word}")]
    return tuple(dict.fromkeys(tuple(ids) for ids in spelt if ids))


def _logprobs(name: str, asked: int | None, model: ServedModel, capabilities: Capabilities) -> int | None:
    """How many of the likeliest tokens are told; -1 asks for all there are."""
    if asked is None:
        return None
    every = capabilities.vocab_size
    count = every if asked == -1 else asked
    most = min(every if limit == -1 else limit for limit in (capabilities.max_logprobs, model.max_logprobs))
    if count > most:
        given = f"-1, which asks for all {every}" if asked == -1 else str(asked)
        raise InvalidRequest(f"{name!r} must be at most {most}, not {given}.", param=name)
    return count


def _max_new_tokens(
    asked: Asked, defaults: SamplingDefaults, capabilities: Capabilities, prompt_length: int, longest: int | None
) -> int:
    """`longest`: where nobody says how many, no more than this."""
    room = capabilities.max_model_len - prompt_length
    if asked.max_tokens is None:
        default = _first(defaults.max_new_tokens, _first(asked.default_max_tokens, room))
        return min(default, room, _first(longest, room))
    if asked.max_tokens > room:
        parts = f"{prompt_length} in the prompt, {asked.max_tokens} for the completion"
        wanted = f"you requested {prompt_length + asked.max_tokens} tokens ({parts})"
        raise context_length_exceeded(capabilities.max_model_len, wanted, param=asked.prompt_field)
    return max(asked.max_tokens, 1)  # 0 scores the prompt: whoever asks for it drops the token


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


def _stop_token_ids(body: GenerationFields, asked: Asked, capabilities: Capabilities) -> tuple[int, ...]:
    given = _token_ids("stop_token_ids", body.stop_token_ids, capabilities) or ()
    return given if body.ignore_eos else (*given, *(end for end in asked.stop_token_ids if end not in given))


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


def num_beams_of(body: GenerationFields, defaults: SamplingDefaults) -> int:
    """Number of beams that are asked for; with vLLM's `use_beam_search` alone, as many as there are outputs."""
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
