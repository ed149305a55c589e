"""The check of a job's data, before it is queued."""

import asyncio
import time

from engines.errors import InvalidRequest, StorageFull, TuneserveError
from server.jobs.executor import Order
from server.jobs.job import JobStatus, given_parameters
from server.jobs.patience import patiently
from server.jobs.run import POLL_SECONDS, Run, make_folder, read_answer, told
from server.jobs.storage import to_storage_error
from server.jobs.store import message
from training.folder import JobFolder, Validation
from training.params.hub import names_on_hub

FETCHED = "hub"
"""The folder of a job's data with what it named on the hub."""


class ValidationTimeout(TuneserveError):
    """The check of a job's data takes too long."""

    code = "validation_timeout"


class ValidationRun(Run):
    """A worker that fetches what the job names on the hub, and checks its data."""

    @property
    def fetches(self) -> bool:
        """Whether it may take as long as downloads do."""
        return any(names_on_hub(self.job.task().params))

    async def work(self) -> None:
        folder, task = self.shop.folders.validation(self.job.id), self.job.task()
        try:
            order = self.shop.hub.order(task, self.shop.folders.data(self.job.id) / FETCHED)
            await asyncio.to_thread(make_folder, folder, task.model_copy(update={"fetch": order}))
            mark = f"{self.shop.mark}/{self.job.id}/validation"
            worker = await self.launch(Order(program="validate", folder=folder, mark=mark, online=order is not None))
        except InvalidRequest as error:
            return await self.fail(told(error), {JobStatus.VALIDATING})
        except OSError as error:
            return await self.fail(told(to_storage_error(error)), {JobStatus.VALIDATING})
        ended = asyncio.create_task(worker.wait())
        try:
            await self._watch(ended)
        except (StorageFull, ValidationTimeout) as error:
            await worker.kill()
            return await self.fail(told(error), {JobStatus.VALIDATING})
        exit_status = await ended
        if self.stopping:
            return
        validation = await asyncio.to_thread(read_answer, JobFolder(folder).read_validation)
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
            return await self.fail(told(error), {JobStatus.VALIDATING})
        await self.change(
            {JobStatus.VALIDATING},
            message("Files validated, moving job to queued state"),
            status=JobStatus.QUEUED,
            parameters=given_parameters(task),
            validated=True,
            queued_at=time.time(),
            deaths=0,
        )
