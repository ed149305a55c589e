"""Something of a job that goes on now, in a worker process: what the check of its data and an attempt share."""

import asyncio
import contextlib
import logging
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from engines.errors import TuneserveError
from server.jobs.executor import Executor, Order, Worker
from server.jobs.folders import JobFolders
from server.jobs.hooks import Hooks
from server.jobs.hub import JobHub
from server.jobs.job import Job, JobStatus
from server.jobs.metrics import JobMetrics
from server.jobs.patience import patiently
from server.jobs.storage import find_storage_error
from server.jobs.store import JobStore, message
from server.jobs.table import CHECKPOINTS
from server.jobs.tidy import tidy
from server.store.reserve import DiskReserve
from server.tasks import Tasks
from training.folder import JobError, JobFolder
from training.params.task import Task

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

POLL_SECONDS = 0.25
"""Seconds between two looks at a worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What all runs share."""

    store: JobStore
    executor: Executor
    folders: JobFolders
    hooks: Hooks
    hub: JobHub
    metrics: JobMetrics
    tasks: Tasks
    reserve: DiskReserve
    mark: str
    """Beginning of the marks of all processes of these jobs."""
    retries: int
    """Workers of a job that may die before it has failed."""
    back_off_seconds: float
    """Seconds before the first retry; each further one waits twice as long."""
    validation_timeout: float
    """Seconds for a worker to check a job's data."""

    async def tidy(self, id: str | None = None, *, running: bool = False) -> None:
        """Remove what nothing can go on from any more, of one job or of all; nothing while a job is being made, as it
        may be about to name it."""
        jobs = await self.store.all()
        for job in jobs if id is None else [job for job in jobs if job.id == id]:
            if self.folders.making:
                return
            others = [each for each in jobs if each.id != job.id and each.status is not JobStatus.SUCCEEDED]
            waiting = await self.store.checkpoints(job, CHECKPOINTS.c.announced.is_(False))
            unannounced = {self.folders.attempt(job.id, each.attempt) / each.path for each in waiting}
            named = {path for other in others for path in other.paths}
            await asyncio.to_thread(tidy, self.folders, job, running=running, named=named, unannounced=unannounced)

    def pause_after(self, deaths: int) -> float:
        """Seconds before the next worker of a job of which so many have died."""
        return self.back_off_seconds * 2.0 ** (deaths - 1)


class Run(ABC):
    """Something of a job that goes on now: `work` in a task of its own."""

    devices: Sequence[str] = ()

    def __init__(self, shop: Workshop, job: Job) -> None:
        self.shop = shop
        self.job = job
        self.publishing = asyncio.Lock()
        """Held while a result is made known: nobody cancels the job meanwhile."""
        self.worker: Worker | None = None
        self.stopping = False
        self.handing_back = False
        """The server stops: the job goes back into the queue."""

    @abstractmethod
    async def work(self) -> None:
        """All that it has to do, to its end."""

    async def stop(self, grace: float) -> None:
        """Have the worker save a checkpoint and end; after `grace` seconds kill it."""
        self.stopping = True
        if self.worker is None:
            return
        if grace > 0:
            self.worker.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.worker.wait(), grace)
                return
        await self.worker.kill()

    async def launch(self, order: Order) -> Worker:
        """Raises OSError."""
        worker = self.worker = await self.shop.executor.start(order)
        if self.stopping:  # it was told while there was no worker to tell
            await worker.kill()
        return worker

    async def fail(self, error: JobError, status: Collection[JobStatus], **values: Any) -> None:
        await self.change(
            status,
            message(error.message, "error"),
            status=JobStatus.FAILED,
            error=error.model_dump(),
            finished_at=time.time(),
            **values,
        )

    async def change(self, before: Collection[JobStatus], *events: Any, **values: Any) -> Job | None:
        job = self.job
        changed = await patiently(
            lambda: self.shop.store.change(job.id, *events, attempt=job.attempt, before=before, **values)
        )
        if changed is not None and changed.ended:
            self.shop.metrics.ended(changed)
        return changed

    async def retry_or_fail(self, exit_status: int, folder: Path, status: JobStatus, back: JobStatus) -> None:
        """The process died without saying why."""
        if (full := await asyncio.to_thread(find_storage_error, folder)) is not None:
            return await self.fail(told(full), {status})
        deaths = self.job.deaths + 1
        error = _tell_death(exit_status, out_of_memory=self.worker is not None and self.worker.out_of_memory)
        if deaths > self.shop.retries:
            return await self.fail(error, {status}, deaths=deaths)
        pause = self.shop.pause_after(deaths)
        text = message(f"{error.message} It is started again in {pause:.3g} s.", "warn")
        await self.change({status}, text, status=back, deaths=deaths, not_before=time.time() + pause)


def told(error: TuneserveError) -> JobError:
    """The error as the API shows it."""
    return JobError(code=error.code or "failed", message=error.message, param=error.param).without_folders()


def _tell_death(exit_status: int, *, out_of_memory: bool) -> JobError:
    if out_of_memory:
        why = "was killed, most likely because memory ran out: the system has ended a process for that while it ran"
        advice = "Smaller are per_device_train_batch_size, max_length, or a model in fewer bits."
        return JobError(code="out_of_memory", message=f"The worker process {why}. {advice}")
    if exit_status < 0:
        what = "was killed" if exit_status == -signal.SIGKILL else f"was ended by signal {-exit_status}"
    else:
        what = f"ended with status {exit_status} and no result; its log may say why"
    return JobError(code="worker_died", message=f"The worker process {what}.")


def make_folder(folder: Path, task: Task) -> None:
    """An empty folder that says what the worker has to do. Raises OSError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    JobFolder(folder).write_task(task.model_copy(update={"discreet": True}))


def read_answer(read: Callable[[], Answer | None]) -> Answer | None:
    """What a worker wrote; None where that is no whole answer."""
    try:
        return read()
    except (OSError, ValueError) as error:
        log.warning("What a worker wrote cannot be read: %s", error)
        return None
