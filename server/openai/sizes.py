"""How large a request and its answer may be, all of its prompts and outputs together."""

from engines.errors import InvalidRequest
from engines.types import GenerationRequest
from server.openai.asked import Asked
from server.openai.schema import GenerationFields

MAX_LISTED_TOKENS = 1 << 20
"""Tokens that are named to be forbidden, allowed, biased or to end an output, times prompts."""
MAX_PROMPT_LOGPROBS = 1 << 18
"""Logprobs of prompt tokens, their own and the likeliest, in one answer."""
MAX_OUTPUT_LOGPROBS = 1 << 20
"""Logprobs of generated tokens, their own and the likeliest, in one answer; in a stream, which is sent as it grows, of
one token of each output."""


def longest_output(body: GenerationFields, asked: Asked, logprobs: int | None) -> int | None:
    """How many tokens of each output an answer holds with `logprobs` of each; None where that is no limit."""
    if logprobs is None or body.stream:
        return None
    return max(1, MAX_OUTPUT_LOGPROBS // (asked.n * len(asked.prompts) * (logprobs + 1)))


def check_sizes(body: GenerationFields, asked: Asked, requests: list[GenerationRequest]) -> None:
    """Raises InvalidRequest."""
    _check_listed(requests)
    _check_prompt_logprobs(asked, requests)
    _check_output_logprobs(body, asked, requests)


def _check_listed(requests: list[GenerationRequest]) -> None:
    """The engine gets the lists of tokens once for each prompt."""
    sampling = requests[0].sampling
    lists = (sampling.logit_bias, sampling.allowed_token_ids or (), sampling.stop_token_ids, *sampling.bad_words_ids)
    if (listed := len(requests) * sum(map(len, lists))) > MAX_LISTED_TOKENS:
        raise InvalidRequest(
            f"The tokens that 'logit_bias', 'allowed_token_ids', 'stop_token_ids' and 'bad_words' name are {listed} "
            f"for all prompts together; at most {MAX_LISTED_TOKENS} are accepted: send fewer prompts at a time.",
            param="prompt",
        )


def _check_prompt_logprobs(asked: Asked, requests: list[GenerationRequest]) -> None:
    likeliest = requests[0].sampling.prompt_logprobs
    if likeliest is None:
        return
    count = sum(len(request.prompt_ids) for request in requests) * asked.scored_outputs * (likeliest + 1)
    if count > MAX_PROMPT_LOGPROBS:
        raise InvalidRequest(
            f"The logprobs of the prompt's tokens would be {count}, and an answer has at most {MAX_PROMPT_LOGPROBS}: "
            "ask for fewer prompts, fewer outputs of each, or fewer logprobs of each token.",
            param="prompt_logprobs",
        )


def _check_output_logprobs(body: GenerationFields, asked: Asked, requests: list[GenerationRequest]) -> None:
    likeliest = requests[0].sampling.logprobs
    if likeliest is None:
        return
    tokens = sum(request.n * (1 if body.stream else request.sampling.max_new_tokens) for request in requests)
    if (count := tokens * (likeliest + 1)) > MAX_OUTPUT_LOGPROBS:
        what, instead = f"up to {tokens} tokens of all outputs", ", shorter outputs, or a stream"
        if body.stream:
            what, instead = "one token of each output", ""
        raise InvalidRequest(
            f"The logprobs of {what} would be {count}, and an answer has at most {MAX_OUTPUT_LOGPROBS} at a time: ask "
            f"for fewer outputs, fewer of each token{instead}.",
            param=asked.logprobs_field,
        )
