"""All batches: made, cancelled, and run in the background, those that were made first first."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from fastapi import Depends

from engines.errors import QuotaExceeded, TuneserveError
from server.backlog import Backlog
from server.batches.batch import UNFINISHED, Batch
from server.batches.run import BatchRun, Changed, Shared
from server.batches.store import BatchStore
from server.deps import part
from server.files.files import Files
from server.inference.inference import Inference
from server.kept.completions import KeptCompletions
from server.model.served import ServedModel
from server.responses.responses import Responses
from server.store.access import SERVER, Access
from server.store.ids import new_id
from server.store.reserve import DiskReserve
from server.tasks import Tasks

WINDOW_SECONDS = 24 * 3600
GRACE_SECONDS = 3600
"""Seconds after its window in which a batch must be over, whatever its server lacks."""


class Batches:
    """Each batch has a folder as long as it is not over: see `Backlog`."""

    def __init__(
        self,
        store: BatchStore,
        folder: Path,
        files: Files,
        reserve: DiskReserve,
        model: ServedModel,
        inference: Inference,
        kept: KeptCompletions,
        responses: Responses,
        tasks: Tasks,
        *,
        refuse_unknown: bool,
        max_line_bytes: int,
        concurrency: int,
        slots: asyncio.Semaphore,
        max_queued: int,
    ) -> None:
        """`folder` is that of all databases' batches; `refuse_unknown` refuses unknown fields in requests;
        `concurrency` are the requests of a batch that are under way at a time; `slots` is held by each that the engine
        has, and by those of evals; `max_queued` are the batches that each client may have under way."""
        self._store = store
        self._max_queued = max_queued
        self._counting = asyncio.Lock()
        self._backlog = Backlog("batch", folder, store.database, self._unfinished, self._run, self._give_up, tasks)
        self._shared = Shared(
            store=store,
            files=files,
            reserve=reserve,
            model=model,
            inference=inference,
            refuse_unknown=refuse_unknown,
            kept=kept,
            responses=responses,
            max_line_bytes=max_line_bytes,
            concurrency=concurrency,
            slots=slots,
            reading=asyncio.Lock(),
        )
        self._cancelled: dict[str, asyncio.Event] = {}

    # ---- asked for over HTTP

    async def create(
        self,
        access: Access,
        *,
        endpoint: str,
        input_file_id: str,
        completion_window: str,
        metadata: dict[str, str] | None,
        output_expires_after: int | None,
    ) -> Batch:
        """A new batch, which has its input for itself, and names what `access` covers. Raises NotFound, StorageFull,
        QuotaExceeded."""
        now = int(time.time())
        batch = Batch(
            id=new_id("batch_"),
            status="validating",
            endpoint=endpoint,
            input_file_id=input_file_id,
            completion_window=completion_window,
            metadata=metadata,
            output_expires_after=output_expires_after,
            owner=access.owner,
            by_admin=access.everything,
            created_at=now,
            expires_at=now + WINDOW_SECONDS,
        )
        self._shared.reserve.check()
        folder = await self._backlog.make_folder(batch.id)
        try:
            await self._shared.files.copy_to(input_file_id, access, folder / "input.jsonl")
            async with self._counting:
                await self._check_quota(access.owner)
                await self._store.add(batch)
        except TuneserveError:
            await self._backlog.remove_folder(batch.id)
            raise
        self._backlog.look()
        return batch

    async def _check_quota(self, owner: str | None) -> None:
        count = await self._store.count_unfinished(owner)
        if count >= self._max_queued:
            text = f"There are {count} batches of yours that run or wait, as many as may be (max_queued_batches)."
            raise QuotaExceeded(f"{text} Wait until one is over, or cancel one.")

    async def get(self, id: str, access: Access) -> Batch:
        return await self._store.get(id, access)

    async def page(self, access: Access, *, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        return await self._store.page(access, after=after, limit=limit)

    async def cancel(self, id: str, access: Access) -> Batch:
        """Raises NotFound, and Conflict where nothing is left to cancel."""
        batch = await self._store.cancel(id, access)
        if id in self._cancelled:
            self._cancelled[id].set()
        return batch

    # ---- in the background

    async def open(self) -> None:
        """Remove the folders of batches that are over. Called once, when the database is open."""
        await self._backlog.open()

    async def run_for_ever(self) -> None:
        """Run what is to be run, until cancelled: what is under way then goes on with the next server."""
        await self._backlog.run_for_ever()

    async def _unfinished(self) -> list[tuple[str, str | None]]:
        unfinished = await self._store.unfinished()
        self._shared.inference.metrics.batches_unfinished.set(len(unfinished))
        return [(batch.id, batch.owner) for batch in unfinished]

    async def _run(self, id: str) -> None:
        try:
            status: str | None = None
            while status is None:
                cancelled = self._cancelled[id] = asyncio.Event()  # before it is read: no cancellation is missed
                batch = await self._store.get(id, SERVER)
                if time.time() > batch.expires_at + GRACE_SECONDS:
                    return await self._give_up(id)
                with suppress(Changed):
                    status = await BatchRun(batch, self._backlog.folder(id), self._shared, cancelled).run()
            self._shared.inference.metrics.count_batch(status)
        finally:
            self._cancelled.pop(id, None)

    async def _give_up(self, id: str) -> None:
        errors = [{"code": "internal_error", "message": "The server failed.", "param": None, "line": None}]
        batch = await self._store.move(id, UNFINISHED, "failed", errors=errors)
        self._shared.inference.metrics.count_batch(batch.status)


BatchesDep = Annotated[Batches, Depends(part(Batches))]
