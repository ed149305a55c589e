"""One answer, whatever API it is for: generations that run, their text with what it means, and how much it was."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from msgspec.structs import replace

from engines.answers.deltas import Delta
from engines.errors import EngineUnavailable
from engines.text.output_text import OutputText, TextDelta, TextOptions
from engines.text.vocabulary import Vocabulary
from engines.types import FinishReason, GenerationRequest, TokenOutput
from server.http.sse import EventStyle
from server.inference.inference import Inference
from server.model.output import OutputPlan
from server.openai.turns import Turns
from server.openai.usage import Usage

CONCURRENCY = 64
"""Prompts of one answer that the engine has at a time, so that a long list does not fill its queue."""

Finish = Literal["stop", "length", "tool_calls"]
FINISHES: dict[FinishReason, Finish] = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What the engine is asked for one answer, and how its outputs are read."""

    requests: list[GenerationRequest]
    """One for each prompt, all with the same `n`. Output `i` of prompt `p` is output `p * n + i` of the answer."""
    options: TextOptions
    plan: OutputPlan
    only_prompt: bool = False
    """The prompt is scored; the one token that is generated on the way is not the client's."""


class AnswerDelta(NamedTuple):
    """What one step adds to one output. The last one of each output, and only it, has a finish."""

    text: TextDelta
    parts: list[Delta]
    """The text as content, reasoning and calls."""
    finish: Finish | None

    @property
    def reasoned(self) -> bool:
        for part in self.parts:  # noqa: SIM110 (`any` would make a generator, for each token)
            if part.reasoning_content is not None:
                return True
        return False

    @property
    def takes_long(self) -> bool:
        """Whether it is to be rendered in a thread: the logprobs of a prompt's tokens come all at once."""
        return self.text.prompt_logprobs is not None

    def finish_to_wire(self) -> dict[str, Any]:
        extra = {} if self.text.stop_reason is None else {"stop_reason": self.text.stop_reason}
        return {"finish_reason": self.finish, **extra}


Take = Callable[[AnswerDelta], Awaitable[None] | None]
"""Takes what one step adds. Where that takes long, what it returns is to be awaited."""


class Renderer(Protocol):
    """An answer in the words of one API: in chunks, or as a whole. One of the two is used, for one answer."""

    events: EventStyle
    """How its chunks are sent."""

    def chunks(self, delta: AnswerDelta) -> Iterable[Any]:
        """Each is a dict, or JSON that has been made of one."""
        ...

    def last_chunks(self, usage: Usage) -> Iterable[Any]: ...

    def add(self, delta: AnswerDelta) -> None: ...

    def whole(self, usage: Usage) -> dict[str, Any]:
        """All that was added."""
        ...


class Answer:
    """One of `stream` and `whole` is called, once. Cancelled, it aborts what runs."""

    def __init__(
        self,
        inference: Inference,
        vocabulary: Vocabulary,
        generation: Generation,
        renderer: Renderer,
        *,
        on_tokens: Callable[[int], None],
    ) -> None:
        """`on_tokens` is called with the number of tokens of each step."""
        self._inference = inference
        self._vocabulary = vocabulary
        self._generation = generation
        self._renderer = renderer
        self._on_tokens = on_tokens
        self._usage = Usage(
            sum(len(request.prompt_ids) for request in generation.requests),
            reasons=generation.plan.reasoning is not None,
            predicted=any(request.prediction_ids is not None for request in generation.requests),
        )

    @property
    def events(self) -> EventStyle:
        """How its stream looks."""
        return self._renderer.events

    async def stream(self, send: Callable[[Any], None]) -> None:
        """Give `send` each chunk, none before the engine's first output."""

        chunks = self._renderer.chunks

        def take(delta: AnswerDelta) -> Awaitable[None] | None:
            if delta.takes_long:
                return take_long(delta)
            for chunk in chunks(delta):
                send(chunk)
            return None

        async def take_long(delta: AnswerDelta) -> None:
            for chunk in await self._inference.pools.text.run(chunks, delta):
                send(chunk)

        await self._run(take)
        for chunk in self._renderer.last_chunks(self._usage):
            send(chunk)

    async def whole(self) -> dict[str, Any]:
        def take(delta: AnswerDelta) -> Awaitable[None] | None:
            if delta.takes_long:
                return self._inference.pools.text.run(self._renderer.add, delta)
            self._renderer.add(delta)
            return None

        await self._run(take)
        return self._renderer.whole(self._usage)

    async def _run(self, take: Take) -> None:
        """Give `take` what each step adds, until every output has ended. Raises what the engine raises."""
        if len(self._generation.requests) == 1:
            await self._generate(0, take)
        else:
            await self._generate_all(take)

    async def _generate_all(self, take: Take) -> None:
        """Run the requests side by side. When one fails all end, and what it raises comes in place of what the others
        gave at that moment.
        """
        slots, turns = asyncio.Semaphore(CONCURRENCY), Turns()
        queue: asyncio.Queue[AnswerDelta | None] = asyncio.Queue()
        errors: list[Exception] = []

        async def run(number: int) -> None:
            try:
                async with slots:
                    await self._generate(number, queue.put_nowait)
            except Exception as error:  # noqa: BLE001 (whatever it is, the answer ends with it)
                errors.append(error)
            finally:
                queue.put_nowait(None)

        tasks = [asyncio.create_task(run(number)) for number in range(len(self._generation.requests))]
        try:
            running = len(tasks)
            while running:
                delta = await queue.get()
                if errors:
                    raise errors[0]
                if delta is None:
                    running -= 1
                elif (taking := take(delta)) is not None:
                    await taking
                if turns.over:
                    await turns.give()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _generate(self, number: int, take: Take) -> None:
        request = self._generation.requests[number]
        engine, turns = self._inference.engine, Turns()
        outputs = [self._output(request, number * request.n + i) for i in range(request.n)]
        with self._inference.metrics.watch(request) as watch:
            async with aclosing(engine.generate(request)) as steps:
                async for step in steps:
                    watch.see(step)
                    self._on_tokens(len(step.token_ids))
                    output = outputs[step.index]
                    if output.finished:
                        continue  # steps that were under way when the output was ended
                    delta = output.push(step)
                    if output.finished and step.finish_reason is None:
                        engine.finish(request.request_id, step.index)
                    if (taking := take(delta)) is not None:
                        await taking
                    if turns.over:
                        await turns.give()

    def _output(self, request: GenerationRequest, index: int) -> "_Output":
        return _Output(
            self._generation, self._usage, OutputText(self._vocabulary, self._generation.options, request, index)
        )


class _Output:
    """One output while it grows. It ends with the engine's, at a stop string, or when its only call is complete."""

    def __init__(self, generation: Generation, usage: Usage, text: OutputText) -> None:
        self.finished = False
        self._text = text
        self._parser = generation.plan.parser()
        self._only_prompt = generation.only_prompt
        self._usage = usage

    def push(self, step: TokenOutput) -> AnswerDelta:
        """Raises EngineUnavailable where the engine gave the request up."""
        text = self._text.push(step)
        if text.finish_reason is FinishReason.ABORT:
            raise EngineUnavailable("The request was ended by the server.")
        if self._only_prompt:
            text = _without_output(text)
        parts = self._parser.push(text.text) if text.text else []
        self.finished = text.finish_reason is not None or self._parser.done
        if self.finished:
            parts += self._parser.finish()
        delta = AnswerDelta(text, parts, self._finish(text.finish_reason) if self.finished else None)
        self._usage.add(text, reasoned=delta.reasoned)
        return delta

    def _finish(self, reason: FinishReason | None) -> Finish:
        finish = FINISHES[reason or FinishReason.STOP]
        return "tool_calls" if finish == "stop" and self._parser.called else finish


def _without_output(delta: TextDelta) -> TextDelta:
    reason = None if delta.finish_reason is None else FinishReason.LENGTH
    return replace(delta, text="", token_ids=(), entries=(), finish_reason=reason, stop_reason=None)
