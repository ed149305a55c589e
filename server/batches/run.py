"""One batch from its start, or from where a server before this one left it, to its end.

Each step can be repeated: what has been answered is in `results.py`'s files, the rest follows from the row. The row
says that the batch is over in the same transaction that makes its output files.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.adapters.disk import sync
from engines.errors import QueueFull, RateLimited, TuneserveError
from server.batches.answers import Answering, Reply, answer
from server.batches.batch import Batch, Status
from server.batches.lines import InvalidInput, Plan, read_plan
from server.batches.results import Results
from server.batches.store import BatchStore
from server.files.files import FileObject, Files
from server.inference.inference import Inference
from server.kept.completions import KeptCompletions
from server.model.served import ServedModel
from server.responses.responses import Responses
from server.store.reserve import DiskReserve

PROGRESS_SECONDS = 1.0
"""Seconds between two updates of a batch's counts."""


class Changed(Exception):
    """The batch is in another status than it was: begin anew with that one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all batches share."""

    store: BatchStore
    files: Files
    reserve: DiskReserve
    model: ServedModel
    inference: Inference
    refuse_unknown: bool
    """Whether a request with an unknown field is refused."""
    kept: KeptCompletions
    responses: Responses
    max_line_bytes: int
    """Longest line of an input: no request has a larger body."""
    concurrency: int
    """Requests of a batch that are under way at a time."""
    slots: asyncio.Semaphore
    """Held by each request that the engine has, of all batches and of evals."""
    reading: asyncio.Lock
    """Held while an input is read as a whole: several at a time would leave the event loop too little time."""


class BatchRun:
    def __init__(self, batch: Batch, folder: Path, shared: Shared, cancelled: asyncio.Event) -> None:
        """`cancelled` is set when the batch is to stop."""
        self._batch = batch
        self._folder = folder
        self._shared = shared
        self._store = shared.store
        self._cancelled = cancelled

    async def run(self) -> Status:
        """The status in which it ended. Raises Changed, and OSError or TuneserveError where it has to wait."""
        max_line = self._shared.max_line_bytes
        try:
            async with self._shared.reading:
                plan = await asyncio.to_thread(read_plan, self._folder / "input.jsonl", self._batch.endpoint, max_line)
        except FileNotFoundError:
            return await self._fail("input_file_missing", "The input is not in this server's state_dir any more.")
        except InvalidInput as invalid:
            return await self._refuse(invalid)
        if self._batch.status == "validating":
            self._batch = await self._store.move(
                self._batch.id, ("validating",), "in_progress", total=len(plan.places), model=plan.model
            )
        results = await asyncio.to_thread(Results, self._folder)
        if self._batch.status != "cancelling":
            await self._answer(plan, results)
        await asyncio.to_thread(self._sync, results)
        if self._batch.status == "cancelling":
            return await self._end("cancelling", "cancelled", results)
        if len(results.done) < len(plan.places):
            return await self._expire(plan, results)
        if self._batch.status == "in_progress":
            self._batch = await self._store.move(self._batch.id, ("in_progress",), "finalizing")
        return await self._end("finalizing", "completed", results)

    # ---- the requests

    async def _answer(self, plan: Plan, results: Results) -> None:
        """Until all are answered, or the batch is cancelled (Changed), or its time is over."""
        remaining = iter([custom_id for custom_id in plan.places if custom_id not in results.done])
        workers = [asyncio.create_task(self._work(remaining, plan, results)) for _ in range(self._shared.concurrency)]
        working = asyncio.gather(*workers)
        watching = [asyncio.create_task(self._cancelled.wait()), asyncio.create_task(self._tell_progress(results))]
        try:
            await asyncio.wait(
                (working, watching[0]),
                timeout=max(0, self._batch.expires_at - time.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if working.done():
                working.result()
        finally:
            for task in (*workers, *watching):
                task.cancel()
            await asyncio.gather(working, *workers, *watching, return_exceptions=True)
        if self._cancelled.is_set():
            raise Changed

    async def _work(self, remaining: Iterator[str], plan: Plan, results: Results) -> None:
        """One request after another: whose turn it is, is shared."""
        for custom_id in remaining:
            reply = await self._ask(custom_id, plan)
            writing = asyncio.ensure_future(
                asyncio.to_thread(results.add_answer, custom_id, reply.status, reply.request_id, reply.body)
            )
            try:
                await asyncio.shield(writing)
            finally:  # who goes on after a cancellation must find it written
                await asyncio.wait((writing,))
            self._shared.inference.metrics.count_batch_request("completed" if reply.status == 200 else "failed")

    async def _ask(self, custom_id: str, plan: Plan) -> Reply:
        """The answer to one request. What its owner may have only later is waited for without a slot: those of others
        go on."""
        shared = self._shared
        by = Answering(
            self._batch.caller,
            shared.model,
            shared.inference,
            shared.kept,
            shared.responses,
            refuse_unknown=shared.refuse_unknown,
        )
        while True:
            try:
                async with shared.slots:
                    shared.reserve.check()
                    body = await shared.inference.pools.text.run(plan.read, custom_id)
                    return await answer(by, self._batch.endpoint, body)
            except (RateLimited, QueueFull) as error:
                await asyncio.sleep(error.retry_after)

    async def _tell_progress(self, results: Results) -> None:
        told = -1
        while True:
            if (done := len(results.done)) != told:
                with contextlib.suppress(TuneserveError):  # the next time, or at the end
                    await self._store.update(self._batch.id, **_counts(results))
                    told = done
            await asyncio.sleep(PROGRESS_SECONDS)

    # ---- the end

    async def _refuse(self, invalid: InvalidInput) -> Status:
        if self._batch.status == "cancelling":
            await self._store.move(self._batch.id, ("cancelling",), "cancelled")
            return "cancelled"
        await self._store.move(self._batch.id, ("validating",), "failed", errors=invalid.errors)
        return "failed"

    async def _fail(self, code: str, message: str) -> Status:
        errors = [{"code": code, "message": message, "param": None, "line": None}]
        await self._store.move(self._batch.id, (self._batch.status,), "failed", errors=errors)
        return "failed"

    async def _expire(self, plan: Plan, results: Results) -> Status:
        def tell() -> None:
            for custom_id in plan.places:
                if custom_id not in results.done:
                    results.add_expired(custom_id)

        await asyncio.to_thread(tell)
        await asyncio.to_thread(self._sync, results)
        return await self._end(self._batch.status, "expired", results)

    def _sync(self, results: Results) -> None:
        for path in (results.output, results.errors, self._folder):
            sync(path)

    async def _end(self, origin: Status, status: Status, results: Results) -> Status:
        """Make the files and say that it is over, in one transaction. Raises Changed where it is not in `origin`."""
        files = self._shared.files
        async with AsyncExitStack() as stack:
            made: dict[str, FileObject] = {}
            for column, path in (("output_file_id", results.output), ("error_file_id", results.errors)):
                if path.stat().st_size:
                    content = await stack.enter_async_context(files.storing(path))
                    name = f"{self._batch.id}_{path.name}"
                    expiry = self._batch.output_expires_after
                    made[column] = content.as_file("batch_output", name, owner=self._batch.owner, expires_after=expiry)
            connection = await stack.enter_async_context(self._store.database.writing())
            for file in made.values():
                await files.add(connection, file)
            ids = {column: file.id for column, file in made.items()}
            if not await self._store.move_in(connection, self._batch.id, (origin,), status, **ids, **_counts(results)):
                raise Changed
        return status


def _counts(results: Results) -> dict[str, int]:
    return {"completed": results.completed, "failed": results.failed, **asdict(results.usage)}
