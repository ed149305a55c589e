"""All that can be done with jobs: what the routes call."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends

from engines.errors import Conflict, InvalidRequest, NotFound, QuotaExceeded, TuneserveError
from engines.params.about import secrets
from server.deps import part
from server.jobs.devices import Devices, NvidiaDevices
from server.jobs.executor import Executor
from server.jobs.folders import JobFolders
from server.jobs.hooks import Hooks
from server.jobs.hub import JobHub
from server.jobs.job import TERMINAL, Job, JobStatus, given_parameters
from server.jobs.metrics import JobMetrics
from server.jobs.run import Workshop
from server.jobs.scheduler import Limits, Scheduler
from server.jobs.storage import to_storage_error
from server.jobs.store import JobStore, message
from server.store.access import SERVER, Access
from server.store.ids import new_id
from server.store.reserve import DiskReserve
from server.tasks import Tasks
from training.folder import Event
from training.params.hub import names_on_hub
from training.params.task import Task

log = logging.getLogger(__name__)

GIB = 1 << 30
BACK_OFF_SECONDS = 5.0
STOP_SECONDS = 120.0
NOT_ENDED = frozenset(JobStatus) - TERMINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What jobs run on."""

    executor: Executor
    devices: Devices = field(default_factory=NvidiaDevices)
    back_off_seconds: float = BACK_OFF_SECONDS
    """Seconds before the first retry of a job whose worker died; each further one waits twice as long."""
    stop_seconds: float = STOP_SECONDS
    """Seconds that a worker has to save a checkpoint and end, where its job is cancelled or paused."""


class Jobs:
    def __init__(
        self,
        store: JobStore,
        folder: Path,
        metrics: JobMetrics,
        machine: Machine,
        hooks: Hooks,
        hub: JobHub,
        tasks: Tasks,
        reserve: DiskReserve,
        *,
        max_running: int,
        max_queued: int,
        retries: int,
        gpu_memory: float,
        validation_timeout: float,
    ) -> None:
        """`folder` is that of all databases' jobs; `max_queued` those of each client; `gpu_memory` in GiB;
        `validation_timeout` in seconds."""
        self.store = store
        self.metrics = metrics
        self._database = store.database
        self._folder = folder
        self._machine = machine
        self._hooks = hooks
        self._hub = hub
        self._tasks = tasks
        self._reserve = reserve
        self._max_queued = max_queued
        self._validation_timeout = validation_timeout
        self._queueing = asyncio.Lock()
        self._retries = retries
        self._limits = Limits(
            max_running=max_running, gpu_memory=int(gpu_memory * GIB), stop_seconds=machine.stop_seconds
        )
        self._opened: tuple[JobFolders, Scheduler] | None = None
        self.streams = 0
        """Clients that wait for events."""

    # ---- with the server

    async def open(self) -> None:
        """Take up what a server before this one has left. Called once, when the database is open."""
        folders = JobFolders(self._folder / self._database.id)
        await asyncio.to_thread(folders.keep_only, await self.store.ids())
        shop = Workshop(
            store=self.store,
            executor=self._machine.executor,
            folders=folders,
            hooks=self._hooks,
            hub=self._hub,
            metrics=self.metrics,
            tasks=self._tasks,
            reserve=self._reserve,
            validation_timeout=self._validation_timeout,
            mark=self._database.id,
            retries=self._retries,
            back_off_seconds=self._machine.back_off_seconds,
        )
        scheduler = Scheduler(shop, self._machine.devices, self._limits)
        await scheduler.recover()
        self._opened = folders, scheduler

    async def run(self) -> None:
        """Run jobs, until `stop`."""
        await self._scheduler.run()

    async def stop(self, grace: float) -> None:
        """Hand running jobs back to the queue, with a checkpoint of each that can save one within `grace` seconds."""
        if self._opened is not None:
            await self._opened[1].stop(grace)

    @property
    def stopping(self) -> bool:
        """Nothing more happens here before the next start."""
        return self._opened is not None and self._opened[1].stopping

    async def look(self) -> None:
        """Count the jobs, for the metrics."""
        if self._database.is_open:
            self.metrics.counts = await self.store.counts()

    @property
    def folders(self) -> JobFolders:
        """Raises Conflict where this server runs no jobs."""
        self._database.check_open()
        assert self._opened is not None, "opened after the database"
        return self._opened[0]

    @property
    def _scheduler(self) -> Scheduler:
        self._database.check_open()
        assert self._opened is not None, "opened after the database"
        return self._opened[1]

    # ---- making

    @contextlib.asynccontextmanager
    async def making(self, prefix: str = "job-") -> AsyncIterator[str]:
        """The id of a new job, whose folder is there with an empty `data`: the block fills it and calls `create`.

        Where the block raises, the folder is removed. Raises StorageFull, Conflict.
        """
        self._reserve.check()
        id, folders = new_id(prefix), self.folders
        folders.making += 1
        try:
            try:
                await asyncio.to_thread(folders.make, id)
            except OSError as error:
                raise to_storage_error(error) from error
            yield id
        except BaseException:
            await self._remove_without_row(id)
            raise
        finally:
            folders.making -= 1

    async def _remove_without_row(self, id: str) -> None:
        """A transaction that was broken off may have been committed all the same."""
        try:
            await self.store.get(id, SERVER)
        except NotFound:
            await asyncio.to_thread(self.folders.remove, id)
        except TuneserveError as error:
            log.warning("The folder of job %s is left to the next start: %s", id, error)

    async def create(
        self,
        id: str,
        task: Task,
        access: Access,
        *events: Event,
        told: Mapping[str, Any] | None = None,
        priority: int = 0,
        devices: int | None = None,
        metadata: Mapping[str, str] | None = None,
        fine_tuning: Mapping[str, Any] | None = None,
    ) -> Job:
        """Have it run as soon as its turn comes. `events` are told as its first; `told` is what the API shows of
        `task`; `access` is that of who makes it, to what it uses.

        Raises InvalidRequest where it asks for more GPUs than there are, Conflict where a job that it needs is gone,
        QuotaExceeded.
        """
        assert not secrets(type(task.params)) & task.params.model_fields_set, "a secret would be lost with the server"
        if devices and devices > (there := len(await self._machine.devices.look())):
            raise InvalidRequest(f"devices is {devices}, and this server has {there} GPUs.", param="devices")
        now = time.time()
        validated = task.data is None and not any(names_on_hub(task.params))  # there is nothing to look at
        job = Job(
            id=id,
            type=task.task,
            status=JobStatus.QUEUED if validated else JobStatus.VALIDATING,
            parameters=given_parameters(task),
            told=None if told is None else dict(told),
            priority=priority,
            devices=0 if not task.gpus and devices is None else devices,
            metadata=None if metadata is None else dict(metadata),
            fine_tuning=None if fine_tuning is None else dict(fine_tuning),
            fine_tuned_model=None,
            attempt=0,
            deaths=0,
            validated=validated,
            owner=access.owner,
            created_at=now,
            queued_at=now if validated else None,
            not_before=None,
            started_at=None,
            finished_at=None,
            error=None,
            result=None,
        )
        async with self._queueing:
            await self._check_quota(job.owner)
            await self.store.create(job, access, *events, needs=self.folders.used_by(job))
        self._scheduler.wake()
        return job

    async def _check_quota(self, owner: str | None) -> None:
        count = await self.store.count_waiting(owner)
        if count >= self._max_queued:
            text = f"There are {count} jobs of yours in the queue, as many as may be (max_queued_jobs)."
            raise QuotaExceeded(f"{text} Wait until one runs, or cancel one.")

    # ---- changing

    async def cancel(self, id: str, access: Access) -> Job:
        """Its worker saves a checkpoint and ends. Raises NotFound, Conflict."""
        cancelled = JobStatus.CANCELLED
        job = await self._move(id, access, NOT_ENDED, "cancelled", status=cancelled, finished_at=time.time())
        self.metrics.ended(job)
        self._scheduler.interrupt(id)
        return job

    async def pause(self, id: str, access: Access) -> Job:
        """Its worker saves a checkpoint and ends; `resume` goes on from there. Raises NotFound, Conflict."""
        job = await self._move(id, access, NOT_ENDED - {JobStatus.PAUSED}, "paused", status=JobStatus.PAUSED)
        self._scheduler.interrupt(id)
        return job

    async def resume(self, id: str, access: Access) -> Job:
        """Back into the queue. Raises NotFound, Conflict, QuotaExceeded."""
        return await self._enqueue(id, access, {JobStatus.PAUSED}, "resumed")

    async def retry(self, id: str, access: Access) -> Job:
        """One that failed or was cancelled goes on from its last checkpoint. Raises NotFound, Conflict,
        QuotaExceeded."""
        again = {"error": None, "result": None, "finished_at": None, "deaths": 0}
        return await self._enqueue(id, access, {JobStatus.FAILED, JobStatus.CANCELLED}, "retried", **again)

    async def delete(self, id: str, access: Access) -> None:
        """Delete the job with all its files. Raises NotFound; Conflict where something of it still runs, or a job that
        has not ended needs what it has made."""
        job, folders = await self.store.get(id, access), self.folders
        idle = frozenset(JobStatus) - {JobStatus.RUNNING, JobStatus.VALIDATING}

        def needs_it(other: Job) -> bool:
            return id in folders.used_by(other)

        running = self._scheduler.run_of(id) is not None
        if running or not await self.store.delete(id, access, before=idle, needed_by=needs_it):
            raise Conflict(f"The job is {job.status} and its worker is there: cancel it first.", param="id")
        await asyncio.to_thread(folders.remove, id)

    async def _enqueue(self, id: str, access: Access, before: set[JobStatus], verb: str, **values: Any) -> Job:
        def status(job: Job) -> JobStatus:
            return JobStatus.QUEUED if job.validated else JobStatus.VALIDATING

        now = time.time()
        async with self._queueing:
            await self._check_quota((await self.store.get(id, access)).owner)
            job = await self._move(id, access, before, verb, status=status, queued_at=now, not_before=None, **values)
        self._scheduler.wake()
        return job

    async def _move(
        self,
        id: str,
        access: Access,
        before: "frozenset[JobStatus] | set[JobStatus]",
        verb: str,
        *,
        status: "JobStatus | Callable[[Job], JobStatus]",
        **values: Any,
    ) -> Job:
        """Whatever else changes the job at the same time comes first or is too late."""
        while True:
            job = await self.store.get(id, access)
            if job.status not in before:
                raise Conflict(f"The job is {job.status} and cannot be {verb}.", param="id")
            to = status(job) if callable(status) else status
            async with self._publishing(id):
                moved = await self.store.change(
                    id,
                    message(f"The job was {verb}"),
                    attempt=job.attempt,
                    before={job.status},
                    status=to,
                    **values,
                )
            if moved is not None:
                return moved

    @contextlib.asynccontextmanager
    async def _publishing(self, id: str) -> AsyncIterator[None]:
        """Nothing of the job is made known meanwhile."""
        run = self._scheduler.run_of(id)
        if run is None:
            yield
            return
        async with run.publishing:
            yield


JobsDep = Annotated[Jobs, Depends(part(Jobs))]
