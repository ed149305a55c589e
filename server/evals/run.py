"""One run of an eval from its start, or from where a server before left it, to its end.

Each step can be repeated: which rows are done is in the database, with what came of them and the counts, in one
transaction for those of about a second.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from engines.errors import InvalidRequest, QueueFull, RateLimited, TuneserveError
from server.batches.answers import Answering, Reply, answer
from server.evals.judging import Judge, Likeness, Verdict
from server.evals.records import Counts, Eval, ItemStatus, ModelUsage, OutputItem, Run, Status
from server.evals.rows import Rows, read_rows
from server.evals.sampling import (
    ENDPOINTS,
    messages_of,
    request_of,
    sample_of_answer,
    sample_to_wire,
    tokens_of,
)
from server.evals.schema import CustomConfig, Jsonl, LogsConfig, Row
from server.evals.store import EvalStore
from server.evals.stored import Stored, StoredAnswers
from server.fine_tuning.graders import ask_in_room
from server.inference.inference import Inference
from server.kept.completions import KeptCompletions
from server.model.served import ServedModel
from server.responses.responses import Responses
from server.store.ids import new_id
from server.store.reserve import DiskReserve
from training.rewards.graders.errors import GradeError
from training.rewards.graders.judging import Question, TokenUsage
from training.rewards.graders.judging import Reply as JudgeReply

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""Seconds between two transactions with what is done."""
MAX_WAITING = 64
"""Rows that wait to be written: with one more, all wait for that."""


class Changed(Exception):
    """The run is not in progress any more: it was canceled, or is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all runs share."""

    store: EvalStore
    stored: StoredAnswers
    reserve: DiskReserve
    model: ServedModel
    inference: Inference
    kept: KeptCompletions
    responses: Responses
    max_line_bytes: int
    """Longest row."""
    concurrency: int
    """Rows of a run that are under way at a time."""
    slots: asyncio.Semaphore
    """Held by each request to the engine, of batches too."""
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the rows of a run are checked as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What came of one row."""

    item: OutputItem
    tokens: list[tuple[str, Mapping[str, int]]]
    """The models that were asked, and what each answer took."""


class EvalRun:
    def __init__(self, run: Run, of: Eval, folder: Path, shared: Shared) -> None:
        """`folder` holds the rows as long as the run is not over."""
        self._run = run
        self._eval = of
        self._source = run.source
        self._rows_file = folder / "rows.jsonl"
        self._shared = shared
        self._store = shared.store
        self._counts = run.counts
        self._done: list[Done] = []
        self._flushing = asyncio.Lock()

    async def run(self) -> Status:
        """The status in which it ended. Raises Changed, and OSError or TuneserveError where it has to wait."""
        if self._run.status == "queued":
            self._run = await self._store.move(self._run.id, ("queued",), "in_progress")
        if self._run.status != "in_progress":
            raise Changed
        try:
            rows = await self._read_rows()
        except FileNotFoundError:
            return await self._fail("rows_missing", "The rows are not in this server's state_dir any more.")
        except InvalidRequest as invalid:
            return await self._fail("invalid_data", invalid.message)
        places = await self._store.places(self._run.id)
        remaining = iter([place for place in range(len(rows.places)) if place not in places])
        async with self._judge() as judge:
            await self._work_through(remaining, rows, judge)
        await self._flush()
        return (await self._store.move(self._run.id, ("in_progress",), "completed")).status

    async def _read_rows(self) -> Rows:
        """Raises FileNotFoundError, InvalidRequest."""
        if not self._rows_file.exists() and isinstance(source := getattr(self._source, "source", None), Stored):
            config = self._eval.config
            wanted = config.metadata if isinstance(config, LogsConfig) else None
            access = self._run.caller.access
            await self._shared.stored.write(source, wanted or {}, access, self._rows_file)
        config = self._eval.config
        schema = config.item_schema if isinstance(config, CustomConfig) else None
        async with self._shared.reading:
            return await asyncio.to_thread(read_rows, self._rows_file, schema, self._shared.max_line_bytes)

    async def _fail(self, code: str, message: str) -> Status:
        error = {"code": code, "message": message}
        return (await self._store.move(self._run.id, ("in_progress",), "failed", error=error)).status

    # ---- the rows

    @contextlib.asynccontextmanager
    async def _judge(self) -> AsyncIterator[Judge]:
        judge = Judge(self._eval.criteria, self._ask_judge, self._compare, self._shared.inference.pools.graders)
        try:
            yield judge
        finally:
            await asyncio.to_thread(judge.close)

    async def _work_through(self, remaining: Iterator[int], rows: Rows, judge: Judge) -> None:
        """Until all are done. What is done by then is written also where it is broken off. Raises Changed."""
        workers = [asyncio.create_task(self._work(remaining, rows, judge)) for _ in range(self._shared.concurrency)]
        writing = asyncio.create_task(self._flush_for_ever())
        working = asyncio.gather(*workers)
        try:
            await asyncio.wait((working, writing), return_when=asyncio.FIRST_COMPLETED)
            (writing if writing.done() else working).result()
        finally:
            judge.stop()
            for task in (*workers, writing):
                task.cancel()
            await asyncio.gather(working, *workers, writing, return_exceptions=True)

    async def _work(self, remaining: Iterator[int], rows: Rows, judge: Judge) -> None:
        """One row after another: whose turn it is, is shared."""
        for place in remaining:
            self._shared.reserve.check()
            if len(self._done) >= MAX_WAITING:
                await self._flush()
            row = await asyncio.to_thread(rows.read, place)
            self._done.append(await self._judged(place, row, judge))

    async def _judged(self, place: int, row: Row, judge: Judge) -> Done:
        messages: list[dict[str, Any]] = []
        tokens: dict[str, int] = {}
        asked: list[tuple[str, Mapping[str, int]]] = []
        sample, model, error = row.sample, "", None
        if not isinstance(self._source, Jsonl) and self._source.model is not None:
            model = self._source.model
            try:
                messages = messages_of(self._source, row.item)
                sample, tokens = await self._sample(messages)
                asked.append((model, tokens))
            except (GradeError, TuneserveError) as failed:
                sample, error = None, _error_of(failed)
        elif sample is not None:
            model = str(sample.get("model") or "")
            messages = [each for each in row.item.get("input") or () if isinstance(each, dict)]
        wire = sample_to_wire(self._source, messages, sample, model=model, tokens=tokens)
        if error is not None:
            return Done(item=self._item(place, row, "error", [], wire | {"error": error}), tokens=asked)
        verdict = await self._graded(judge, sample or {}, row)
        asked += [(judge_model, _plain(usage)) for judge_model, usage in verdict.tokens]
        return Done(item=self._item(place, row, verdict.status, verdict.results, wire), tokens=asked)

    async def _graded(self, judge: Judge, sample: Mapping[str, Any], row: Row) -> Verdict:
        while True:
            try:
                return await judge(sample, row.item)
            except QueueFull as error:
                await asyncio.sleep(error.retry_after)

    def _item(
        self, place: int, row: Row, status: ItemStatus, results: list[dict[str, Any]], sample: dict[str, Any]
    ) -> OutputItem:
        return OutputItem(
            id=new_id("outputitem_"),
            run_id=self._run.id,
            place=place,
            status=status,
            created_at=int(time.time()),
            datasource_item=row.item,
            results=results,
            sample=sample,
        )

    # ---- models

    async def _sample(self, messages: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, int]]:
        """The model's answer, and what it took. Raises TuneserveError for a request that is refused."""
        reply = await self._answer(ENDPOINTS[self._source.type], request_of(self._source, messages))
        return sample_of_answer(reply.body), tokens_of(reply.body)

    async def _ask_judge(self, question: Question) -> JudgeReply:
        """What a model says that grades. Raises TuneserveError."""
        reply = await ask_in_room(question, partial(self._answer, "/v1/chat/completions"))
        text = reply.body["choices"][0]["message"]["content"] or ""
        return JudgeReply(text=text, usage=TokenUsage(**tokens_of(reply.body)))

    async def _compare(self, text: str, reference: str) -> Likeness:
        """By the embeddings of the base model. Raises TuneserveError."""
        model = self._shared.model.name
        reply = await self._answer("/v1/embeddings", {"model": model, "input": [text, reference]})
        told = orjson.loads(orjson.dumps(reply.body))  # the vectors are JSON already
        cosine = math.fsum(a * b for a, b in zip(*(each["embedding"] for each in told["data"]), strict=True))
        usage = TokenUsage(prompt_tokens=told["usage"]["prompt_tokens"])
        return Likeness(cosine=cosine, model=model, usage=usage)

    async def _answer(self, endpoint: str, body: dict[str, Any]) -> Reply:
        """The answer to one request, at the priority of batches. What its owner may have only later is waited for
        without a slot. Raises TuneserveError."""
        shared = self._shared
        by = Answering(self._run.caller, shared.model, shared.inference, shared.kept, shared.responses)
        while True:
            try:
                async with shared.slots:
                    reply = await answer(by, endpoint, body)
            except (RateLimited, QueueFull) as error:
                await asyncio.sleep(error.retry_after)
                continue
            if reply.status == 200:
                return reply
            refused = reply.body["error"]
            raise TuneserveError(str(refused["message"]), code=refused["code"] or "error")

    # ---- writing

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self._flush()
            except TuneserveError as error:
                log.warning("What the run %s has done waits to be written: %s", self._run.id, error)

    async def _flush(self) -> None:
        """Write what is done. Raises Changed where the run is not in progress any more, TuneserveError."""
        async with self._flushing:
            done = list(self._done)
            counts = _with(self._counts, done)
            if not await self._store.add_items(self._run.id, [each.item for each in done], counts):
                raise Changed
            self._counts = counts
            del self._done[: len(done)]


def _with(counts: Counts, done: list[Done]) -> Counts:
    more = deepcopy(counts)
    for each in done:
        more.add(each.item.status, each.item.results)
        for model, tokens in each.tokens:
            more.usage.setdefault(model, ModelUsage()).add(tokens)
    return more


def _plain(usage: TokenUsage) -> dict[str, int]:
    return {name: getattr(usage, name) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")}


def _error_of(failed: Exception) -> dict[str, str]:
    if isinstance(failed, GradeError):
        return {"code": failed.kind, "message": failed.details}
    assert isinstance(failed, TuneserveError)
    return {"code": failed.code or "error", "message": failed.message}
