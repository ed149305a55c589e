"""Inferences in the test's own process, on EchoEngine: it says the last message back."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.echo import EchoEngine, echo_tokenizer
from engines.types import GenerationRequest, TokenOutput
from server.infer import endpoint, pipeline
from tests.training.jobs import make_job
from training.folder import JobFolder, Result
from training.params.infer import AnswerParams
from training.report import Report


class Config:
    def to_dict(self) -> dict[str, Any]:
        return {}


class Listening(EchoEngine):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[GenerationRequest] = []
        self.stop_at = 0
        """The request at which the process is told to stop, and which is never answered."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        self.requests.append(request)
        if len(self.requests) == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        async for output in super().generate(request):
            yield output


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    """The engine of every endpoint that is made."""
    engine = Listening()
    monkeypatch.setattr(endpoint, "build_engine", lambda params, several_owners: engine)
    monkeypatch.setattr(endpoint, "load_tokenizer", lambda *given, **named: echo_tokenizer())
    monkeypatch.setattr(endpoint, "load_generation_config", lambda *given, **named: Config())
    yield engine


Answered = Callable[..., tuple[Result, list[dict[str, Any]], JobFolder]]


@pytest.fixture
def answered(engine: Listening, tmp_path: Path) -> Answered:
    """Run an inference over rows; return how it ended, its lines, and the job's folder."""
    runs = iter(range(100))

    def run(rows: list[dict[str, Any]], **params: Any) -> tuple[Result, list[dict[str, Any]], JobFolder]:
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {"model": "echo", "val_dataset": [str(data)], **params}
        given = {name: value for name, value in given.items() if value is not None}
        folder = make_job(tmp_path / f"job{next(runs)}", "infer", **given)
        asked = folder.read_task().params
        assert isinstance(asked, AnswerParams)
        report, before = Report(folder), signal.getsignal(signal.SIGTERM)
        report.heed_signals()
        try:
            result = pipeline.run(asked, report)
        finally:
            signal.signal(signal.SIGTERM, before)
        path = Path(asked.result_path) if asked.result_path else folder.path / (result.artifact or "answers.jsonl")
        return result, [json.loads(line) for line in path.read_text().splitlines()], folder

    return run
