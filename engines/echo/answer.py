"""The tokens of an answer: the prompt's last message, and what the request makes of it."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from engines.echo.tokenizer import BYTES, END_OF_TEXT, IM_END, IM_START, SPECIALS, VOCAB_SIZE
from engines.errors import InvalidRequest
from engines.text.grammar import parser_limits, to_llguidance
from engines.text.thinking import Thinking
from engines.types import FinishReason, GenerationRequest, Sampling, Structured, TokenLogprob, TokenOutput

FORBIDDEN = -100.0
"""OpenAI's logit bias that bans a token."""


def outputs(request: GenerationRequest, index: int) -> Iterator[TokenOutput]:
    """The parts of one output, step by step."""
    sampling = request.sampling
    first = True
    for token, finish_reason in _answer(request):
        yield TokenOutput(
            index=index,
            token_ids=(token,),
            logprobs=None if sampling.logprobs is None else (_logprob(token, sampling.logprobs),),
            finish_reason=finish_reason,
            stop_token_id=token if finish_reason is FinishReason.STOP else None,
            cached_tokens=0 if first and index == 0 else None,
            queue_seconds=0.0 if first and index == 0 else None,
            prompt_logprobs=_prompt_logprobs(request) if first and index == 0 else None,
            preemptions=None if finish_reason is None else 0,
        )
        first = False


def _answer(request: GenerationRequest) -> Iterator[tuple[int, FinishReason | None]]:
    """The answer's tokens, the last of them with its finish reason."""
    sampling = request.sampling
    stops = {*sampling.stop_token_ids} | (set() if sampling.ignore_eos else {IM_END, END_OF_TEXT})
    content = _last_message(request.prompt_ids)
    if request.adapter is not None and sampling.structured is None:
        content = [*f"{request.adapter}: ".encode(), *content]
    again: Iterator[int] = itertools.cycle(content or [ord(" ")])
    wanted = again if sampling.ignore_eos else itertools.chain(content, itertools.repeat(IM_END))
    constraint = None if sampling.structured is None else _Constraint(sampling.structured)
    if constraint is not None:
        stops |= {IM_END}  # nothing can follow it
    thinking = None if sampling.thinking_budget is None else Thinking(sampling.thinking_budget, _token_bytes)
    produced: list[int] = []
    for token in wanted if thinking is None else _thoughtful(wanted, thinking):
        forbidden = stops if len(produced) < sampling.min_new_tokens else set()
        token = _likeliest(token, produced, forbidden, sampling, constraint)
        if thinking is not None:
            thinking.accept(token)
        produced.append(token)
        if constraint is not None:
            constraint.push(token)
        if token in stops:
            yield token, FinishReason.STOP
            return
        if len(produced) == sampling.max_new_tokens:
            yield token, FinishReason.LENGTH
            return
        yield token, None


def _thoughtful(wanted: Iterator[int], thinking: Thinking) -> Iterator[int]:
    """What is wanted, with the end of the reasoning where it must end."""
    for token in wanted:
        while thinking.forced is not None:
            yield thinking.forced
        yield token


def _last_message(prompt_ids: list[int]) -> list[int]:
    """The content of the last message that has ended; the whole prompt where it has no messages."""
    ends = [position for position, token in enumerate(prompt_ids) if token == IM_END]
    starts = [position for position, token in enumerate(prompt_ids[: ends[-1]]) if token == IM_START] if ends else []
    if not starts:
        return prompt_ids
    message = prompt_ids[starts[-1] + 1 : ends[-1]]
    role_end = message.index(ord("\n")) if ord("\n") in message else -1
    return message[role_end + 1 :]


def _likeliest(
    wanted: int, produced: list[int], forbidden: set[int], sampling: Sampling, constraint: "_Constraint | None"
) -> int:
    """The first candidate that nothing forbids."""
    candidates = _by_likelihood(wanted)
    if constraint is not None:
        forbidden = forbidden | constraint.forbidden()
        candidates = itertools.chain((wanted, IM_END, *b'"}]'), candidates)  # rather end than go astray
    for token in candidates:
        allowed = sampling.allowed_token_ids is None or token in sampling.allowed_token_ids
        biased = sampling.logit_bias.get(token, 0.0) <= FORBIDDEN
        if allowed and not biased and token not in forbidden and not _ends_bad_word(token, produced, sampling):
            return token
    raise InvalidRequest("Every token is forbidden.")


class _Constraint:
    """The tokens that structured output allows."""

    def __init__(self, structured: Structured) -> None:
        tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary()))
        self._matcher = LLMatcher(tokenizer, to_llguidance(structured), log_level=0, limits=parser_limits())

    def forbidden(self) -> set[int]:
        mask = self._matcher.compute_bitmask()
        return {token for token in range(VOCAB_SIZE) if not mask[token // 8] >> token % 8 & 1}

    def push(self, token: int) -> None:
        self._matcher.consume_token(token)


class _Vocabulary:
    """The tokenizer as llguidance wants it described."""

    eos_token_id = IM_END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(BYTES)), *(special.encode() for special in SPECIALS))
    special_token_ids = (END_OF_TEXT, IM_START, IM_END)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _token_bytes(token: int) -> bytes:
    return _Vocabulary.tokens[token]


def _ends_bad_word(token: int, produced: list[int], sampling: Sampling) -> bool:
    return any(tuple([*produced, token][-len(word) :]) == word for word in sampling.bad_words_ids)


def _by_likelihood(first: int) -> Iterator[int]:
    """The made-up distribution: each token upwards from `first`, around the vocabulary, is half as likely."""
    return ((first + i) % VOCAB_SIZE for i in range(VOCAB_SIZE))


def _logprob(token: int, count: int) -> TokenLogprob:
    top = itertools.islice(_by_likelihood(token), count)
    return TokenLogprob(token, math.log(0.5), tuple((other, (i + 1) * math.log(0.5)) for i, other in enumerate(top)))


def _prompt_logprobs(request: GenerationRequest) -> tuple[TokenLogprob | None, ...] | None:
    count = request.sampling.prompt_logprobs
    if count is None:
        return None
    return (None, *(replace(_logprob(token, count), rank=1) for token in request.prompt_ids[1:]))
