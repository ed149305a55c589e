"""One attempt of a job, from its folder to its end, and one look at a job's data."""

import asyncio
import contextlib
import logging
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest, StorageFull, TuneserveError
from server.jobs.executor import Executor, Order, Worker
from server.jobs.folders import JobFolders
from server.jobs.hooks import Hooks
from server.jobs.hub import JobHub
from server.jobs.job import COUNTING, Job, JobStatus, given_parameters
from server.jobs.metrics import JobMetrics
from server.jobs.patience import AWAY, patiently
from server.jobs.storage import find_storage_error, to_storage_error
from server.jobs.store import JobStore, message
from server.jobs.table import CHECKPOINTS
from server.jobs.tail import Tail
from server.jobs.tidy import paths_of, tidy
from server.store.access import SERVER
from server.store.reserve import DiskReserve
from server.tasks import Tasks
from training.folder import JobError, JobFolder, Result, Step, Validation
from training.params.hub import names_on_hub
from training.params.task import Task

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
FETCHED = "hub"
"""The folder of a job's data with what it named on the hub."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What attempts share."""

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
    """Seconds for a worker to look at a job's data."""

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
            needed = {"named": paths_of(others), "unannounced": unannounced}
            await asyncio.to_thread(tidy, self.folders, job, running=running, **needed)


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
            return await self.fail(_told(full), {status})
        deaths = self.job.deaths + 1
        error = _tell_death(exit_status, out_of_memory=self.worker is not None and self.worker.out_of_memory)
        if deaths > self.shop.retries:
            return await self.fail(error, {status}, deaths=deaths)
        pause = self.shop.back_off_seconds * 2 ** (deaths - 1)
        text = message(f"{error.message} It is started again in {pause:.3g} s.", "warn")
        await self.change({status}, text, status=back, deaths=deaths, not_before=time.time() + pause)


class ValidationTimeout(TuneserveError):
    """The look at a job's data takes too long."""

    code = "validation_timeout"


class ValidationRun(Run):
    """What the job names on the hub is fetched, and its data looked at, before it is queued."""

    @property
    def fetches(self) -> bool:
        """Whether it may take as long as downloads do."""
        return any(names_on_hub(self.job.task().params))

    async def work(self) -> None:
        folder, task = self.shop.folders.validation(self.job.id), self.job.task()
        try:
            order = self.shop.hub.order(task, self.shop.folders.data(self.job.id) / FETCHED)
            await asyncio.to_thread(_make_folder, folder, task.model_copy(update={"fetch": order}))
            mark = f"{self.shop.mark}/{self.job.id}/validation"
            worker = await self.launch(Order(program="validate", folder=folder, mark=mark, online=order is not None))
        except InvalidRequest as error:
            return await self.fail(_told(error), {JobStatus.VALIDATING})
        except OSError as error:
            return await self.fail(_told(to_storage_error(error)), {JobStatus.VALIDATING})
        ended = asyncio.create_task(worker.wait())
        try:
            await self._watch(ended)
        except (StorageFull, ValidationTimeout) as error:
            await worker.kill()
            return await self.fail(_told(error), {JobStatus.VALIDATING})
        exit_status = await ended
        if self.stopping:
            return
        validation = await asyncio.to_thread(_read, JobFolder(folder).read_validation)
        if validation is None:
            again = JobStatus.VALIDATING
            return await self.retry_or_fail(exit_status, folder, again, again)
        await self._settle(validation)

    async def _watch(self, ended: asyncio.Task[int]) -> None:
        """Return once the worker has ended. Raises StorageFull, ValidationTimeout."""
        seconds = self.shop.validation_timeout
        deadline = time.monotonic() + seconds
        while not ended.done():
            await asyncio.wait({ended}, timeout=min(POLL_SECONDS, seconds))
            self.shop.reserve.check()
            if time.monotonic() > deadline and not ended.done():
                text = f"The job's data could not be looked at within {seconds:g} s (job_validation_timeout)."
                raise ValidationTimeout(text)

    async def _settle(self, validation: Validation) -> None:
        if validation.error is not None:
            return await self.fail(validation.error, {JobStatus.VALIDATING})
        try:
            data = self.shop.folders.data(self.job.id)
            task = await patiently(lambda: self.shop.hooks.prepare(self.job, data, validation))
            task = task.with_params(validation.fetched)
        except TuneserveError as error:
            return await self.fail(_told(error), {JobStatus.VALIDATING})
        await self.change(
            {JobStatus.VALIDATING},
            message("Files validated, moving job to queued state"),
            status=JobStatus.QUEUED,
            parameters=given_parameters(task),
            validated=True,
            queued_at=time.time(),
            deaths=0,
        )


class AttemptRun(Run):
    """A worker process, from its start to the result."""

    def __init__(self, shop: Workshop, job: Job, devices: Sequence[str]) -> None:
        super().__init__(shop, job)
        self.devices = devices
        self._folder = shop.folders.attempt(job.id, job.attempt)
        self._tail = Tail(shop.store, job, self._folder)

    async def work(self) -> None:
        await patiently(lambda: self.shop.hooks.before_attempt(self.job))
        try:
            await asyncio.to_thread(self._make)
            worker = await self.launch(self._order())
        except OSError as error:
            return await self.fail(_told(to_storage_error(error)), COUNTING)
        ended = asyncio.create_task(worker.wait())
        try:
            await patiently(lambda: self.shop.store.set_process(self.job, worker.pid, worker.started))
            while not ended.done():
                await asyncio.wait({ended}, timeout=POLL_SECONDS)
                self.shop.reserve.check()
                await self.take_in()
        except StorageFull as error:
            return await self._end_for_want_of_room(worker, error)
        except BaseException:
            await worker.kill()
            raise
        finally:
            self.shop.metrics.forget(self.job)
        await self.settle(ended.result())
        await self.shop.tidy(self.job.id)

    async def _end_for_want_of_room(self, worker: Worker, error: StorageFull) -> None:
        """What it has saved so far stays: `retry` goes on from there."""
        await worker.kill()
        await patiently(self._tail.read)
        await self.fail(_told(error), COUNTING)
        await self.shop.tidy(self.job.id)

    def _make(self) -> None:
        """A folder that says what to do, from the last checkpoint on. Raises OSError."""
        task = self.job.task()
        checkpoint = self.shop.folders.newest_checkpoint(self.job)
        _make_folder(self._folder, task if checkpoint is None else task.going_on_from(checkpoint))

    def _order(self) -> Order:
        mark = f"{self.shop.mark}/{self.job.id}/{self.job.attempt}"
        return Order(program="run", folder=self._folder, mark=mark, devices=self.devices)

    async def take_in(self) -> None:
        """Have the tables say what the worker has said, and announce its checkpoints."""
        try:
            for event in await self._tail.read():
                if isinstance(event, Step):
                    self.shop.metrics.stepped(self.job, event)
            await self._announce()
        except AWAY as error:  # there is time until the next look
            log.debug("Job %s has to wait: %s", self.job.id, error)

    async def _announce(self) -> None:
        store, job = self.shop.store, self.job
        waiting = await store.checkpoints(job, CHECKPOINTS.c.announced.is_(False))
        for checkpoint in waiting:
            if (await store.get(job.id, SERVER)).status is JobStatus.CANCELLED:
                return
            folder = self.shop.folders.attempt(job.id, checkpoint.attempt) / checkpoint.path
            try:
                async with self.publishing:
                    await self.shop.hooks.on_checkpoint(job, checkpoint.attempt, folder, checkpoint.step)
            except AWAY:
                raise
            except TuneserveError as error:
                await store.add_event(job, message(f"Checkpoint {checkpoint.step}: {error.message}", "warn"))
            await store.set_announced(checkpoint)
        if waiting:
            await self.shop.tidy(job.id, running=True)

    async def settle(self, exit_status: int | None) -> None:
        """Draw the conclusions. `exit_status` is None where the server that started the worker has died."""
        await patiently(self._tail.read)
        result = await asyncio.to_thread(_read, JobFolder(self._folder).read_result)
        if result is not None and result.status == "succeeded":
            await self._succeed(result)
        elif result is not None and result.status == "failed":
            error = result.error or JobError(code="failed", message="The job failed; its log has the details.")
            await self.fail(error, COUNTING, result=result.model_dump(mode="json"))
        elif self.handing_back or self.stopping or exit_status is None or result is not None:
            await self.change({JobStatus.RUNNING}, message("The job goes back to the queue"), status=JobStatus.QUEUED)
            await self.take_in()
        else:
            await self.retry_or_fail(exit_status, self._folder, JobStatus.RUNNING, JobStatus.QUEUED)

    async def _succeed(self, result: Result) -> None:
        await patiently(self._announce)
        try:
            await patiently(lambda: self._publish(result))
        except TuneserveError as error:
            await self.fail(_told(error), COUNTING, result=result.model_dump(mode="json"))

    async def _publish(self, result: Result) -> None:
        async with self.publishing:
            job = await self.shop.store.get(self.job.id, SERVER)
            if job.attempt != self.job.attempt or job.status not in COUNTING:
                return
            columns = await self.shop.hooks.on_success(job, job.attempt, self._folder, result)
            await self.change(
                COUNTING,
                message("The job has successfully completed"),
                status=JobStatus.SUCCEEDED,
                result=result.model_dump(mode="json"),
                finished_at=time.time(),
                **columns,
            )


class RecoveredRun(AttemptRun):
    """An attempt whose server died, and with it, by now, its worker."""

    async def work(self) -> None:
        await self.settle(None)
        await self.shop.tidy(self.job.id)


def _told(error: TuneserveError) -> JobError:
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


def _make_folder(folder: Path, task: Task) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    JobFolder(folder).write_task(task.model_copy(update={"discreet": True}))


def _read(read: Any) -> Any:
    """What a worker wrote; None where that is no whole answer."""
    try:
        return read()
    except (OSError, ValueError) as error:
        log.warning("What a worker wrote cannot be read: %s", error)
        return None
