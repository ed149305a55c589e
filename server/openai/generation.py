"""What the answers of chat completions and completions have in common: running requests, usage, logprobs."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson
from fastapi import Request, Response

from engines.errors import EngineUnavailable
from engines.text.logprob_entries import TokenEntry
from engines.text.output_text import TextDelta, TextOptions, generate_text
from engines.text.vocabulary import Vocabulary
from engines.types import LOWEST_LOGPROB, FinishReason, GenerationRequest, Structured, TokenLogprob
from server.http.settings import HttpSettings
from server.http.sse import stream_events, until_disconnect
from server.inference.inference import Inference
from server.model.structured import read_structured
from server.openai.schema import GenerationFields, StreamOptions

CONCURRENCY = 64
"""Prompts of one request that the engine has at a time, so that a long list does not fill its queue."""


async def run(
    inference: Inference, request: GenerationRequest, vocabulary: Vocabulary, options: TextOptions
) -> AsyncGenerator[TextDelta, None]:
    """The request's text, measured. Raises what the engine raises; EngineUnavailable where it gave the request up."""
    steps = inference.metrics.observed(request, inference.engine.generate(request))
    deltas = generate_text(steps, request, vocabulary, options, finish=inference.engine.finish)
    async with aclosing(deltas):
        async for delta in deltas:
            if delta.finish_reason is FinishReason.ABORT:
                raise EngineUnavailable("The request was ended by the server.")
            yield delta


async def run_together(
    runs: Sequence[AsyncGenerator[TextDelta, None]], outputs_each: int
) -> AsyncGenerator[TextDelta, None]:
    """Several requests as one: the outputs of the second have the indices after those of the first, and so on.

    A refusal of one that is there with the first output of any is raised in its place. When one fails all are closed.
    """
    slots = asyncio.Semaphore(CONCURRENCY)
    queue: asyncio.Queue[TextDelta | None] = asyncio.Queue()

    async def read(number: int) -> None:
        try:
            async with slots, aclosing(runs[number]) as deltas:
                async for delta in deltas:
                    queue.put_nowait(replace(delta, index=delta.index + number * outputs_each))
        finally:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(read(number)) for number in range(len(runs))]
    try:
        running = len(tasks)
        while running:
            delta = await queue.get()
            raise_first_error(tasks)
            if delta is None:
                running -= 1
            else:
                yield delta
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def raise_first_error(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


class Usage:
    """Tokens of an answer, counted as they come."""

    def __init__(self, prompt_tokens: int) -> None:
        self.completion_tokens = 0
        self.reasoning_tokens: int | None = None
        """None where the model's reasoning is not told apart."""
        self._prompt_tokens = prompt_tokens
        self._cached_tokens: int | None = None

    def add(self, delta: TextDelta) -> None:
        self.completion_tokens += len(delta.token_ids)
        if delta.cached_tokens is not None:
            self._cached_tokens = (self._cached_tokens or 0) + delta.cached_tokens

    def add_reasoning(self, delta: TextDelta) -> None:
        self.reasoning_tokens = (self.reasoning_tokens or 0) + len(delta.token_ids)

    def to_wire(self) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self._prompt_tokens + self.completion_tokens,
        }
        if self._cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self._cached_tokens}
        if self.reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        return usage


async def read_constraint(body: GenerationFields) -> Structured | None:
    """What `response_format` and `structured_outputs` ask for. In a thread: a grammar takes its time to check."""
    if body.response_format is None and body.structured_outputs is None:
        return None
    return await asyncio.to_thread(read_structured, body.response_format, body.structured_outputs)


FINISH_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


def floored(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


def chat_entry(entry: TokenEntry, vocabulary: Vocabulary) -> dict[str, Any]:
    """One of `logprobs.content`. The sampled token looks the same where it is among the likeliest."""
    shown = to_token(entry.shown, entry.logprob)
    top = [
        {**shown, "logprob": floored(logprob)}
        if token_id == entry.token_id
        else to_token(vocabulary.token_bytes(token_id), logprob)
        for token_id, logprob in entry.top
    ]
    return {**shown, "top_logprobs": top}


def to_token(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": data.decode(errors="replace"), "logprob": floored(logprob), "bytes": list(data)}


def to_prompt_logprobs(
    logprobs: Sequence[TokenLogprob | None], count: int, vocabulary: Vocabulary
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: every prompt token's own logprob and the likeliest ones', by token id."""
    return [None if entry is None else _rivals(entry, count, vocabulary) for entry in logprobs]


def _rivals(entry: TokenLogprob, count: int, vocabulary: Vocabulary) -> dict[str, Any]:
    ranked = {
        str(token_id): {"logprob": floored(logprob), "rank": rank, "decoded_token": vocabulary.token_text(token_id)}
        for rank, (token_id, logprob) in enumerate(entry.top[:count], 1)
    }
    own = {"logprob": floored(entry.logprob), "decoded_token": vocabulary.token_text(entry.token_id)}
    return {str(entry.token_id): own, **ranked}


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What is the same in all pieces of one answer."""

    id: str
    created: int
    model: str
    """As the request named it."""

    def to_wire(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class Answer(Protocol):
    """What a request is answered with. One of the two is called, once."""

    def chunks(self) -> AsyncGenerator[dict[str, Any], None]: ...

    async def completion(self) -> dict[str, Any]: ...


async def respond(request: Request, answer: Answer, body: GenerationFields, http: HttpSettings) -> Response:
    """The answer as the request wants it: in chunks or as a whole."""
    if body.stream:
        return await stream_events(request, answer.chunks(), keep_alive=http.keep_alive_seconds)
    whole = await until_disconnect(request, answer.completion())
    return Response(orjson.dumps(whole), media_type="application/json")


async def to_chunks(
    pieces: AsyncGenerator[dict[str, Any], None],
    head: dict[str, Any],
    usage: Usage,
    options: StreamOptions | None,
    **first: Any,
) -> AsyncGenerator[dict[str, Any], None]:
    """A chunk around each piece, which is a choice; `first` is told in the first chunk only.

    With `include_usage`, one more chunk at the end has what `usage` has counted by then, and all others have none.
    """
    include_usage = options is not None and bool(options.include_usage)
    nothing_yet = {"usage": None} if include_usage else {}
    async with aclosing(pieces):
        async for piece in pieces:
            yield {**head, "choices": [piece], **nothing_yet, **first}
            first = {}
    if include_usage:
        yield {**head, "choices": [], "usage": usage.to_wire()}
