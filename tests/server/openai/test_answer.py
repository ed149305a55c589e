"""An answer over an engine that keeps to a script: what ends an output, and what becomes of errors and
cancellations."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from engines.echo import EchoEngine, echo_tokenizer
from engines.errors import EngineFailure, EngineUnavailable, QueueFull, TuneserveError
from engines.params.deploy import DeployParams
from engines.text.output_text import TextOptions
from engines.text.stop_strings import StopTable
from engines.types import FinishReason, GenerationRequest, Sampling, TokenOutput
from server.http.sse import CHUNKS
from server.inference.inference import Inference
from server.model.output import text_plan
from server.model.served import ServedModel
from server.openai.answer import Answer, AnswerDelta, Generation
from server.openai.usage import Usage
from server.parts import make_parts

Step = tuple[int, str, FinishReason | None]


class ScriptedEngine(EchoEngine):
    """Yields the steps of its script, an error or silence (None) at their place, and remembers what it was told."""

    def __init__(self, **scripts: list[Step | TuneserveError | None]) -> None:
        """Scripts by the ids of their requests."""
        super().__init__()
        self.scripts = scripts
        self.finished: list[tuple[str, int]] = []
        self.closed: list[str] = []

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        try:
            for step in self.scripts[request.request_id]:
                if step is None:
                    await asyncio.Event().wait()
                elif isinstance(step, TuneserveError):
                    raise step
                else:
                    index, text, reason = step
                    yield TokenOutput(index=index, token_ids=tuple(text.encode()), finish_reason=reason)
        finally:
            self.closed.append(request.request_id)

    def finish(self, request_id: str, index: int) -> None:
        self.finished.append((request_id, index))


class Texts:
    """A renderer of plain texts."""

    events = CHUNKS

    def chunks(self, delta: AnswerDelta) -> list[dict[str, Any]]:
        return [{"index": delta.text.index, "text": delta.text.text, "finish": delta.finish}]

    def last_chunks(self, usage: Usage) -> list[dict[str, Any]]:
        return [{"tokens": usage.completion_tokens}]

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}

    def add(self, delta: AnswerDelta) -> None:
        self.texts[delta.text.index] = self.texts.get(delta.text.index, "") + delta.text.text

    def whole(self, usage: Usage) -> dict[str, Any]:
        return {"texts": self.texts, "tokens": usage.completion_tokens}


def answer_of(engine: ScriptedEngine, *, n: int = 1, stop: tuple[str, ...] = ()) -> Answer:
    parts = make_parts(engine, echo_tokenizer(), DeployParams(model="echo"))
    generation = Generation(
        requests=[
            GenerationRequest(request_id=name, prompt_ids=[1], n=n, sampling=Sampling(max_new_tokens=99))
            for name in engine.scripts
        ],
        options=TextOptions(stop=StopTable(stop)),
        plan=text_plan(None),
    )
    return Answer(parts[Inference], parts[ServedModel].vocabulary, generation, Texts(), on_tokens=lambda _: None)


async def test_an_output_that_met_a_stop_string_is_finished_early_and_the_others_go_on() -> None:
    script = [(0, "a", None), (1, "x", None), (0, ".", None), (0, "late", None), (1, "y", None)]
    engine = ScriptedEngine(r=[*script, (1, "z", FinishReason.LENGTH)])
    assert await answer_of(engine, n=2, stop=(".",)).whole() == {"texts": {0: "a", 1: "xyz"}, "tokens": 5}
    assert engine.finished == [("r", 0)]


async def test_what_was_under_way_when_a_stop_string_was_met_is_dropped() -> None:
    engine = ScriptedEngine(r=[(0, "a.", None), (0, "late", None)])
    assert await answer_of(engine, stop=(".",)).whole() == {"texts": {0: "a"}, "tokens": 2}
    assert (engine.finished, engine.closed) == ([("r", 0)], ["r"])


async def test_a_stream_is_the_same_piece_by_piece_with_the_usage_at_its_end() -> None:
    chunks: list[dict[str, Any]] = []
    await answer_of(ScriptedEngine(r=[(0, "a", None), (0, "b", FinishReason.LENGTH)])).stream(chunks.append)
    assert chunks == [
        {"index": 0, "text": "a", "finish": None},
        {"index": 0, "text": "b", "finish": "length"},
        {"tokens": 2},
    ]


async def test_an_error_comes_after_what_was_there_before_it() -> None:
    chunks: list[dict[str, Any]] = []
    with pytest.raises(EngineFailure):
        await answer_of(ScriptedEngine(r=[(0, "a", None), EngineFailure("died")])).stream(chunks.append)
    assert [chunk["text"] for chunk in chunks] == ["a"]


async def test_a_request_that_the_engine_gave_up_is_unavailable() -> None:
    with pytest.raises(EngineUnavailable):
        await answer_of(ScriptedEngine(r=[(0, "", FinishReason.ABORT)])).whole()


async def test_a_cancelled_answer_closes_the_engines_iterators() -> None:
    engine = ScriptedEngine(a=[(0, "x", None), None], b=[(0, "y", None), None])
    begun = asyncio.Event()
    task = asyncio.create_task(answer_of(engine).stream(lambda chunk: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(engine.closed) == ["a", "b"]


async def test_one_of_several_requests_that_is_refused_refuses_the_answer_before_its_first_chunk() -> None:
    engine = ScriptedEngine(a=[(0, "x", None), None], b=[QueueFull("full")])
    chunks: list[dict[str, Any]] = []
    with pytest.raises(QueueFull):
        await answer_of(engine).stream(chunks.append)
    assert chunks == [] and sorted(engine.closed) == ["a", "b"]


async def test_the_outputs_of_the_second_prompt_follow_those_of_the_first() -> None:
    end = FinishReason.LENGTH
    engine = ScriptedEngine(a=[(1, "b", end), (0, "a", end)], b=[(0, "c", end), (1, "d", end)])
    assert await answer_of(engine, n=2).whole() == {"texts": {0: "a", 1: "b", 2: "c", 3: "d"}, "tokens": 4}
