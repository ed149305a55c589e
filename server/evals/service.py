"""All evals: made, run, canceled, deleted; runs that were made first are run first."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends

from engines.errors import Conflict, InvalidRequest, ModelNotFound, NotFound, QuotaExceeded, TuneserveError
from server.backlog import Backlog
from server.deps import part
from server.evals.item_schema import ItemSchema
from server.evals.judging import check_criterion
from server.evals.records import UNFINISHED, Counts, Eval, Run
from server.evals.rows import read_rows, write_rows
from server.evals.run import Changed, EvalRun, Shared
from server.evals.sampling import check_sampled
from server.evals.schema import CustomConfig, EvalBody, FileContent, FileId, Jsonl, LogsConfig, RunBody
from server.evals.stored import Stored
from server.files.files import Files
from server.files.routes import purposes_of
from server.files.storage import told_full
from server.fine_tuning.graders import Graders
from server.http.keys.caller import Caller
from server.store.access import SERVER, Access
from server.store.ids import new_id
from server.tasks import Tasks

MAX_EVALS = 10_000
"""Evals of one owner."""
MAX_RUNS = 10_000
"""Runs of one owner, with those that are over."""
GIB = 1 << 30


class Evals:
    """The rows of a run lie in a folder as long as it is not over, `state_dir/evals/<id of the database>/<id>`."""

    def __init__(
        self,
        shared: Shared,
        folder: Path,
        files: Files,
        graders: Graders,
        tasks: Tasks,
        *,
        max_queued: int,
        max_bytes: int,
    ) -> None:
        """`folder` is that of all databases' runs; `max_queued` are the runs that each client may have under way,
        `max_bytes` what the output items of all its runs may have."""
        self.store = shared.store
        self._shared = shared
        self._backlog = Backlog(
            "eval run", folder, self.store.database, self.store.unfinished, self._run, self._give_up, tasks
        )
        self._files = files
        self._graders = graders
        self._max_queued = max_queued
        self._max_bytes = max_bytes
        self._counting = asyncio.Lock()

    # ---- asked for over HTTP

    async def create(self, body: EvalBody, caller: Caller) -> Eval:
        """Raises InvalidRequest, ModelNotFound, QuotaExceeded."""
        if isinstance(body.data_source_config, CustomConfig):
            await asyncio.to_thread(ItemSchema, body.data_source_config.item_schema)
        for place, criterion in enumerate(body.testing_criteria):
            param = f"testing_criteria[{place}]"
            check_criterion(criterion, param)
            try:
                await self._graders.check_for_eval(criterion, caller)
            except (InvalidRequest, ModelNotFound) as error:
                raise _at(error, param) from None
        now = int(time.time())
        new = Eval(
            id=new_id("eval_"),
            owner=caller.name,
            name=body.name or "",
            metadata=body.metadata or {},
            config=body.data_source_config,
            criteria=body.testing_criteria,
            created_at=now,
            updated_at=now,
        )
        async with self._counting:
            if (count := await self.store.count_evals(caller.name)) >= MAX_EVALS:
                raise QuotaExceeded(f"There are {count} evals of yours, as many as may be: delete some.")
            await self.store.add_eval(new)
        return new

    async def delete(self, id: str, access: Access) -> None:
        """With its runs. Raises NotFound."""
        for run in await self.store.delete_eval(id, access):
            await self._backlog.break_off(run)

    async def start(self, eval_id: str, body: RunBody, caller: Caller) -> Run:
        """A new run, which has its rows for itself. Raises NotFound, InvalidRequest, ModelNotFound, StorageFull,
        QuotaExceeded."""
        of = await self.store.get_eval(eval_id, caller.access)
        source = body.data_source
        await self._check_source(of, body, caller)
        run = Run(
            id=new_id("evalrun_"),
            eval_id=of.id,
            owner=caller.name,
            by_admin=caller.is_admin,
            status="queued",
            name=body.name or getattr(source, "model", None) or of.name,
            metadata=body.metadata or {},
            data_source=source.model_dump(mode="json", exclude_unset=True),
            created_at=int(time.time()),
            counts=Counts(criteria={label: [0, 0] for label in of.labels}),
        )
        self._shared.reserve.check()
        folder = await self._backlog.make_folder(run.id)
        try:
            await self._bring_rows(of, source.source, folder / "rows.jsonl", caller)
            async with self._counting:
                await self._check_quota(caller.name)
                await self.store.add_run(run)
        except TuneserveError:
            await self._backlog.remove_folder(run.id)
            raise
        self._backlog.look()
        return run

    async def _check_source(self, of: Eval, body: RunBody, caller: Caller) -> None:
        source = body.data_source
        if isinstance(of.config, LogsConfig) and not isinstance(source.source, Stored):
            message = f"The eval is about kept answers ({of.config.type}), and this source has rows of its own."
            raise InvalidRequest(f"data_source.source: {message}", param="data_source.source")
        if isinstance(source, Jsonl):
            return
        check_sampled(source)
        if source.model is None:
            return
        with contextlib.ExitStack() as held:
            try:
                await self._shared.inference.lease(source.model, caller.access, held)
            except ModelNotFound as error:
                raise ModelNotFound(error.message, param="data_source.model") from None

    async def _bring_rows(self, of: Eval, source: Any, path: Path, caller: Caller) -> None:
        """Rows that come with the request are checked at once, those of a file when the run begins."""
        if isinstance(source, FileId):
            try:
                await self._files.get(source.id, caller.access, purposes_of(caller))
                await self._files.copy_to(source.id, caller.access, path)
            except NotFound as error:
                raise NotFound(error.message, param="data_source.source.id") from None
        if isinstance(source, FileContent):
            schema = of.config.item_schema if isinstance(of.config, CustomConfig) else None
            with told_full():
                await asyncio.to_thread(write_rows, path, source.content)
            try:
                await asyncio.to_thread(read_rows, path, schema, self._shared.max_line_bytes)
            except InvalidRequest as error:
                where = "data_source.source.content"
                raise InvalidRequest(f"{where}: {error.message}", param=where) from None

    async def _check_quota(self, owner: str | None) -> None:
        waiting, all, size = await self.store.count_runs(owner)
        if waiting >= self._max_queued:
            text = f"There are {waiting} runs of yours that go on or wait, as many as may be (max_queued_batches)."
            raise QuotaExceeded(f"{text} Wait until one is over, or cancel one.")
        if all >= MAX_RUNS or size >= self._max_bytes:
            text = (
                f"There are {all} runs of yours, with {size / GIB:.3g} GiB: no more may be ({MAX_RUNS}; max_kept_size)."
            )
            raise QuotaExceeded(f"{text} Delete some.")

    async def cancel(self, id: str, access: Access, eval_id: str) -> Run:
        """Raises NotFound, and Conflict where nothing is left to cancel."""
        await self.store.get_run(id, access, eval_id)
        run = await self.store.move(id, UNFINISHED, "canceled", access)
        if run.status != "canceled":
            raise Conflict(f"A run with status {run.status!r} cannot be canceled.", param="run_id")
        await self._backlog.break_off(id)
        return run

    async def delete_run(self, id: str, access: Access, eval_id: str) -> None:
        """Raises NotFound."""
        await self.store.delete_run(id, access, eval_id)
        await self._backlog.break_off(id)

    # ---- in the background

    async def open(self) -> None:
        """Remove the rows of runs that are over. Called once, when the database is open."""
        await self._backlog.open()

    async def run_for_ever(self) -> None:
        """Run what is to be run, until cancelled: what is under way then goes on with the next server."""
        await self._backlog.run_for_ever()

    async def _run(self, id: str) -> None:
        run = await self.store.get_run(id, SERVER)
        of = await self.store.get_eval(run.eval_id, SERVER)
        with contextlib.suppress(Changed):  # canceled, or deleted
            await EvalRun(run, of, self._backlog.folder(id), self._shared).run()

    async def _give_up(self, id: str) -> None:
        error = {"code": "internal_error", "message": "The server failed."}
        await self.store.move(id, UNFINISHED, "failed", error=error)


EvalsDep = Annotated[Evals, Depends(part(Evals))]


def _at(error: TuneserveError, param: str) -> TuneserveError:
    """A grader's fault, in the words of a list of them."""
    path = (error.param or "grader").replace("grader", param, 1)
    return type(error)(error.message.replace("grader", param, 1), param=path)
