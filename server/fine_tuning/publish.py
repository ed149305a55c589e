"""What becomes of the adapters that jobs make: they are given names, and answer to them at once.

A fine-tuning job promises a model, and fails where it cannot be served. Any other job that trains an adapter of the
served model is published too, and tells in its events where that cannot be served.
"""

import asyncio
import errno
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from engines.errors import Conflict, EngineUnavailable, TuneserveError
from engines.params.deploy import DeployParams
from server.files.files import FileObject, Files
from server.fine_tuning.names import checkpoint_name, model_name
from server.fine_tuning.prepare import prepare
from server.fine_tuning.progress import result_csv
from server.fine_tuning.record import FineTuning
from server.fine_tuning.servable import check_servable
from server.inference.inference import Inference
from server.jobs.job import COUNTING, Job, JobStatus
from server.jobs.store import CURVE, JobStore, message
from server.model.served import ServedModel, model_source
from training.folder import Event, Result, Validation
from training.params.task import Task


class NotPublished(TuneserveError):
    """The job has made a model that cannot be served."""

    code = "publishing_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """The hooks of running jobs.

    The names that it gives are in the registry before any row of the database says them.
    """

    model: ServedModel
    served: DeployParams
    """What the model is served with."""
    inference: Inference
    store: JobStore
    files: Files

    async def prepare(self, job: Job, data: Path, validation: Validation) -> Task:
        """Choose what a fine-tuning job's client left open, and have its record say what was chosen."""
        if job.fine_tuning is None:
            return job.task()
        record = FineTuning.model_validate(job.fine_tuning)
        record, task = prepare(record, data, validation, self.served)
        await self._remember(job, record, {JobStatus.VALIDATING})
        return task

    async def before_attempt(self, job: Job) -> None:
        """Raises EngineUnavailable where the engine may still download the served model, which workers do not."""
        if not (self.inference.lifecycle.has_started or Path(model_source(self.served)).exists()):
            raise EngineUnavailable("The model is still loading.")

    async def on_checkpoint(self, job: Job, attempt: int, folder: Path, step: int) -> None:
        """Raises NotPublished, which is told among the job's events."""
        if job.fine_tuning is not None or self._could_be_served(job):
            await self._publish(checkpoint_name(self._name(job), step), folder, job)

    async def on_success(self, job: Job, attempt: int, folder: Path, result: Result) -> dict[str, Any]:
        if job.fine_tuning is None:
            return await self._publish_if_served(job, folder, result)
        if result.kind != "adapter" or result.artifact is None:
            raise NotPublished("The training has made no adapter.")
        record = FineTuning.model_validate(job.fine_tuning)
        await self._publish(record.name, folder / result.artifact, job)
        if not record.result_files:
            record = await self._write_result_file(job, record)
        return {"fine_tuned_model": record.name, "fine_tuning": record.model_dump(mode="json")}

    async def _publish_if_served(self, job: Job, folder: Path, result: Result) -> dict[str, Any]:
        if result.kind != "adapter" or result.artifact is None or not self._could_be_served(job):
            return {}
        name = self._name(job)
        try:
            await self._publish(name, folder / result.artifact, job)
        except NotPublished as error:
            await self.store.add_event(job, message(error.message, "warn"))
            return {}
        return {"fine_tuned_model": name}

    async def _publish(self, name: str, folder: Path, job: Job) -> None:
        """Loading the same content again is no new version: this may be done again. Raises EngineUnavailable,
        StoreUnavailable."""
        self.inference.lifecycle.check_ready()
        await self.inference.fine_tuned.give(name, job.owner)
        try:
            await self.inference.adapters.load(name, folder, replace=True, source=job.id)
        except EngineUnavailable:
            raise
        except TuneserveError as error:
            raise NotPublished(f"{name} cannot be served: {error.message}") from error
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "there is no room left on the server's disk" if full else error.strerror
            raise NotPublished(f"{name} cannot be served: {reason}.") from error

    async def _write_result_file(self, job: Job, record: FineTuning) -> FineTuning:
        """The file is there in the same moment in which the record names it."""
        events = [event.event async for piece in self.store.all_events(job, types=CURVE) for event in piece]
        text = await asyncio.to_thread(result_csv, events)
        async with self.files.storing(text.encode()) as content:
            name = f"{job.id}-results.csv"
            file = content.as_file("fine-tune-results", name, owner=job.owner, expires_after=None)
            record = record.model_copy(update={"result_files": (file.id,)})
            created = message(f"New fine-tuned model created: {record.name}")
            await self._remember(job, record, COUNTING, created, file=file)
        return record

    async def _remember(
        self,
        job: Job,
        record: FineTuning,
        before: Collection[JobStatus],
        *events: Event,
        file: FileObject | None = None,
    ) -> None:
        """Have the job's row hold `record`, and the table of files `file`."""

        async def add(connection: AsyncConnection) -> None:
            if file is not None:
                await self.files.add(connection, file)

        values = {"fine_tuning": record.model_dump(mode="json")}
        changed = await self.store.change(job.id, *events, attempt=job.attempt, before=before, also=add, **values)
        if changed is None:
            raise Conflict("The job is not what it was any more.")

    def _could_be_served(self, job: Job) -> bool:
        params = job.task().training
        if params is None or model_source(params) != model_source(self.served):
            return False
        try:
            check_servable(params, self.inference.engine.capabilities().adapters)
        except TuneserveError:
            return False
        return True

    def _name(self, job: Job) -> str:
        if job.fine_tuning is not None:
            return FineTuning.model_validate(job.fine_tuning).name
        return model_name(base=self.model.name, owner=self.model.owner, suffix=None, job_id=job.id)
