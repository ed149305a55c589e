"""One attempt of a job, from its folder to its end."""

import asyncio
import logging
import time
from collections.abc import Sequence

from engines.errors import StorageFull, TuneserveError
from server.jobs.executor import Order, Worker
from server.jobs.job import COUNTING, Job, JobStatus
from server.jobs.patience import AWAY, patiently
from server.jobs.run import POLL_SECONDS, Run, Workshop, make_folder, read_answer, told
from server.jobs.storage import to_storage_error
from server.jobs.store import message
from server.jobs.table import CHECKPOINTS
from server.jobs.tail import Tail
from server.store.access import SERVER
from training.folder import JobError, JobFolder, Result, Step

log = logging.getLogger(__name__)


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
            return await self.fail(told(to_storage_error(error)), COUNTING)
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
        await self.fail(told(error), COUNTING)
        await self.shop.tidy(self.job.id)

    def _make(self) -> None:
        """A folder that says what to do, from the last checkpoint on, with what earlier attempts hand on. Raises
        OSError."""
        task = self.job.task()
        checkpoint = self.shop.folders.newest_checkpoint(self.job)
        make_folder(self._folder, task if checkpoint is None else task.going_on_from(checkpoint))
        for name in task.keeps:
            self.shop.folders.hand_on(self.job, name)

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
        result = await asyncio.to_thread(read_answer, JobFolder(self._folder).read_result)
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
            await self.fail(told(error), COUNTING, result=result.model_dump(mode="json"))

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
