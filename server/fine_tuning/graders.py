"""Graders in the server: whether it can run one, and what one says, asking the models that are served."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends

from engines.errors import EngineUnavailable, ModelNotFound, TuneserveError, UnsupportedParameter
from server.deps import part
from server.http.body import parse_object
from server.http.keys.caller import Caller
from server.inference.inference import Inference
from server.jobs.graders import check_offered
from server.model.served import ServedModel
from server.openai.chat import CHAT
from server.openai.pipeline import admit
from server.openai.schema import ChatRequest
from training.params.graders import OneGrader
from training.rewards.graders.grading import Graded, Grading, compares_embeddings, models_of, sample_of
from training.rewards.graders.judging import Question, Reply, TokenUsage

Answer = TypeVar("Answer")
ANSWER_SECONDS = 120.0
"""Seconds that a model has for one answer: OpenAI's limit of a grade."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graders:
    model: ServedModel
    inference: Inference
    runs_python: bool

    async def check_for_eval(self, grader: OneGrader, caller: Caller) -> None:
        """Raises InvalidRequest, ModelNotFound, for what could judge nothing in an eval here."""
        with ExitStack() as held:
            await self._check(grader, caller, held, embeds=True)
            if not compares_embeddings(grader):
                return
            if not self.inference.engine.capabilities().embeddings:
                message = "grader.evaluation_metric: cosine compares embeddings, and this engine makes none."
                raise UnsupportedParameter(message, param="grader.evaluation_metric")
            await self._lease(self.model.name, caller, held)

    async def check(self, grader: OneGrader, caller: Caller) -> None:
        """Raises InvalidRequest, ModelNotFound, for what could judge nothing here."""
        with ExitStack() as held:
            await self._check(grader, caller, held)

    async def run(self, grader: OneGrader, text: str, item: dict[str, Any], caller: Caller) -> Graded:
        """What it says of an answer.

        Raises InvalidRequest, ModelNotFound, EngineUnavailable, RateLimited, QueueFull.
        """
        with ExitStack() as held:
            await self._check(grader, caller, held)
            if models_of(grader):
                self.inference.lifecycle.check_ready()
                self.inference.rate_limits.of(caller).begin(held)
            judges = Judges(self.model, self.inference, caller)
            held.callback(judges.close)
            return await self.inference.pools.graders.run(_grade, grader, judges, text, item)

    async def _check(self, grader: OneGrader, caller: Caller, held: ExitStack, *, embeds: bool = False) -> None:
        """The models that it asks stay loaded until `held` is closed."""
        check_offered(grader, runs_python=self.runs_python, embeds=embeds)
        for model in models_of(grader):
            await self._lease(model, caller, held)

    async def _lease(self, model: str, caller: Caller, held: ExitStack) -> None:
        try:
            await self.inference.lease(model, caller.access, held)
        except ModelNotFound as error:
            raise ModelNotFound(error.message, param="grader.model") from None


GradersDep = Annotated[Graders, Depends(part(Graders))]


def _grade(grader: OneGrader, judges: "Judges", text: str, item: dict[str, Any]) -> Graded:
    with closing(Grading(grader, judges.ask)) as grading:
        return grading(sample_of(text), item)


@dataclass(slots=True)
class Judges:
    """The served models, asked from threads while the event loop answers. Closed, it asks no more."""

    model: ServedModel
    inference: Inference
    caller: Caller
    closed: bool = False
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    asked: set["Future[Reply]"] = field(default_factory=set)

    def ask(self, question: Question) -> Reply:
        """Raises TuneserveError."""
        future = asyncio.run_coroutine_threadsafe(self._answer(question), self.loop)
        self.asked.add(future)
        try:
            if self.closed:
                future.cancel()
            return future.result(ANSWER_SECONDS)
        except TimeoutError:
            raise EngineUnavailable(f"it took longer than {ANSWER_SECONDS:g} s") from None
        except CancelledError:
            raise EngineUnavailable("the request has ended") from None
        finally:
            future.cancel()
            self.asked.discard(future)

    def close(self) -> None:
        self.closed = True
        for future in list(self.asked):
            future.cancel()

    async def _answer(self, question: Question) -> Reply:
        whole = await ask_in_room(question, self._chat)
        used = whole["usage"]
        usage = TokenUsage(
            prompt_tokens=used["prompt_tokens"],
            completion_tokens=used["completion_tokens"],
            cached_tokens=(used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        )
        return Reply(text=whole["choices"][0]["message"]["content"] or "", usage=usage)

    async def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        with ExitStack() as held:
            asked = parse_object(ChatRequest, body)
            answer = await admit(CHAT, asked, self.caller, self.model, self.inference, held)
            return await answer.whole()


async def ask_in_room(question: Question, ask: Callable[[dict[str, Any]], Awaitable[Answer]]) -> Answer:
    """What comes of the chat request that asks it, with as many tokens as the grader says, or as a grade has and the
    model's context leaves. Raises what `ask` raises."""
    body = question_body(question)
    try:
        return await ask(body)
    except TuneserveError as error:
        if error.code != "context_length_exceeded" or question.sampling.max_completions_tokens is not None:
            raise
    del body["max_completion_tokens"]
    return await ask(body)


def question_body(question: Question) -> dict[str, Any]:
    """The chat request that asks it."""
    schema = {"name": "grade", "schema": question.schema, "strict": True}
    given = question.sampling.model_dump(exclude_none=True, exclude={"max_completions_tokens"})
    return {
        "model": question.model,
        "messages": list(question.messages),
        "response_format": {"type": "json_schema", "json_schema": schema},
        "max_completion_tokens": question.max_tokens,
        **given,
    }
