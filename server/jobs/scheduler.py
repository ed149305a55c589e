"""Which job runs when, and on what: by priority, then by age, as many at a time as there may be."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from engines.errors import Conflict, TuneserveError
from server.jobs.attempt import AttemptRun, RecoveredRun
from server.jobs.devices import Device, Devices, choose
from server.jobs.job import Job, JobStatus
from server.jobs.processes import kill_marked
from server.jobs.run import Run, Workshop
from server.jobs.table import JOBS
from server.jobs.validation import ValidationRun
from training.folder import JobError
from training.params.task import TASKS

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Seconds to the next try where the database was away, or while jobs wait for GPUs: who else takes their memory tells
nobody when it is free."""
MOST_VALIDATIONS = 2
"""Checks of data at a time, and as many again for jobs that fetch something from the hub: downloads do not hold up jobs
that bring their data along."""
SETTLING_SECONDS = 5.0
"""Seconds to take in what workers have left, when the server stops."""

OUR_FAULT = JobError(code="internal_error", message="The server failed to run this job; its log has the details.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    max_running: int
    """Jobs that run at a time."""
    gpu_memory: int
    """Bytes that must be free on a GPU before a job gets it."""
    stop_seconds: float
    """Seconds for a worker to save a checkpoint and end, once it was told to."""


class Scheduler:
    def __init__(self, shop: Workshop, devices: Devices, limits: Limits) -> None:
        self._shop = shop
        self._devices = devices
        self._limits = limits
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stops: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._stopping = False

    @property
    def stopping(self) -> bool:
        return self._stopping

    def wake(self) -> None:
        """Something has changed: look at the queue."""
        self._news.set()

    def run_of(self, id: str) -> Run | None:
        """What goes on of this job now; it may be on its way out, of a job that was cancelled or paused."""
        return self._runs.get(id)

    def interrupt(self, id: str) -> None:
        """Have the worker of a job that was cancelled or paused save a checkpoint and end."""
        if (run := self._runs.get(id)) is not None:
            stopping = asyncio.create_task(run.stop(self._limits.stop_seconds))
            self._stops.add(stopping)
            stopping.add_done_callback(self._stopped)

    def _stopped(self, stopping: asyncio.Task[None]) -> None:
        self._stops.discard(stopping)
        if not stopping.cancelled() and (error := stopping.exception()) is not None:
            self._shop.tasks.failed("job", error, "A worker could not be told to stop.")

    async def recover(self) -> None:
        """Deal with what a server before this one has left: end its processes, take up its jobs."""
        store = self._shop.store
        left = await store.all(JOBS.c.status.in_((JobStatus.RUNNING, JobStatus.PAUSED)))
        attempts = [attempt for job in left for attempt in await store.attempts(job.id)]
        known = [(each.pid, each.pid_started) for each in attempts if each.pid and each.pid_started]
        if killed := await asyncio.to_thread(kill_marked, self._shop.mark, known):
            log.warning("%d processes of jobs had outlived their server and were ended.", killed)
        await self._shop.tidy()
        for job in left:
            if job.attempt:
                self._begin(RecoveredRun(self._shop, job, ()))

    async def run(self) -> None:
        """Start what can be started, until `stop`.

        No other process puts jobs into the queue, as one server owns its database: what changes it calls `wake`, and
        while nothing does and no job waits for a time to come, the database is left alone.
        """
        while not self._stopping:
            self._news.clear()
            try:
                pause = await self._fill()
            except TuneserveError as error:
                log.warning("No job can be started now: %s", error)
                pause = LOOK_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news.wait()

    async def stop(self, grace: float) -> None:
        """Hand all jobs back to the queue, each with a checkpoint where it can save one in `grace` seconds."""
        if self._stopping:
            return
        self._stopping = True
        self.wake()
        for run in self._runs.values():
            run.handing_back = True
        if tasks := set(self._tasks):
            stops = [run.stop(0 if isinstance(run, ValidationRun) else grace) for run in list(self._runs.values())]
            await asyncio.gather(*stops, *self._stops, return_exceptions=True)
            _, late = await asyncio.wait(tasks, timeout=SETTLING_SECONDS)
            for task in late:  # such as one that waits for the engine to take its result: the next server goes on
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # ---- starting

    async def _fill(self) -> float | None:
        """Start what can be started. Returns the seconds until more could be without news; None: never."""
        ran = set(self._runs)  # the list can name what comes to its end while it is read
        waiting = await self._shop.store.all(JOBS.c.status.in_((JobStatus.VALIDATING, JobStatus.QUEUED)))
        now = time.time()
        pauses = {job.id: self._pause(job, now) for job in waiting}
        later = [pause for pause in pauses.values() if pause]
        ready = [job for job in waiting if job.id not in ran and not pauses[job.id]]
        for job in [job for job in ready if job.status is JobStatus.VALIDATING]:
            run = ValidationRun(self._shop, job)
            others = [each for each in self._runs.values() if isinstance(each, ValidationRun)]
            if sum(each.fetches == run.fetches for each in others) < MOST_VALIDATIONS:
                self._begin(run)
        if await self._start_queued([job for job in ready if job.status is JobStatus.QUEUED]):
            later.append(LOOK_SECONDS)
        return min(later, default=None)

    def _pause(self, job: Job, now: float) -> float:
        """Seconds until the job may begin. None waits longer than it was told to, where the clock has been set back."""
        left = 0.0 if job.not_before is None else max(0.0, job.not_before - now)
        return left if left <= self._shop.pause_after(max(1, job.deaths)) else 0.0

    async def _start_queued(self, jobs: Sequence[Job]) -> bool:
        """Returns whether one has to wait for GPUs. It holds up those behind it that want some, or it might wait for
        ever."""
        if not jobs or self._count(AttemptRun) >= self._limits.max_running:
            return False
        devices = await self._devices.look()
        gpus_are_awaited = False
        for job in jobs:
            if self._count(AttemptRun) >= self._limits.max_running or self._stopping:
                break
            wanted = min(TASKS[job.type].gpus, len(devices)) if job.devices is None else job.devices
            if wanted and gpus_are_awaited:
                continue
            chosen = self._choose(devices, wanted)
            if chosen is None:
                gpus_are_awaited = True
                continue
            begun = await self._shop.store.begin_attempt(job)
            if begun is not None:
                self._shop.metrics.began(begun)
                self._begin(AttemptRun(self._shop, begun, [device.id for device in chosen]))
        return gpus_are_awaited

    def _choose(self, devices: Sequence[Device], wanted: int) -> list[Device] | None:
        taken = {id for run in self._runs.values() for id in run.devices}
        return choose(devices, wanted, taken=taken, needed_bytes=self._limits.gpu_memory)

    def _count(self, kind: type[Run]) -> int:
        return sum(isinstance(run, kind) for run in self._runs.values())

    def _begin(self, run: Run) -> None:
        if self._stopping:
            return
        self._runs[run.job.id] = run
        task = asyncio.create_task(self._attend(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attend(self, run: Run) -> None:
        try:
            await run.work()
        except Conflict as error:  # the database is another server's now, which takes the job up
            log.warning("The job %s is left to another server: %s", run.job.id, error)
        except Exception as error:  # noqa: BLE001 (whatever it is, the log says it)
            self._shop.tasks.failed("job", error, f"The run of job {run.job.id} broke off.")
            await self._give_up(run)
        finally:
            del self._runs[run.job.id]
            self.wake()

    async def _give_up(self, run: Run) -> None:
        """Have the job fail, however often that takes: it must not hang in its status for ever."""
        while True:
            try:
                await run.fail(OUR_FAULT, {JobStatus.VALIDATING, JobStatus.RUNNING})
            except Conflict:
                return
            except Exception as error:  # noqa: BLE001 (likewise)
                self._shop.tasks.failed("job", error, f"The job {run.job.id} cannot be marked as failed.")
                await asyncio.sleep(LOOK_SECONDS)
            else:
                return
