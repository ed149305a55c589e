"""What happens with what a job has made: the seam between running jobs and publishing models."""

from pathlib import Path
from typing import Any, Protocol

from server.jobs.job import Job
from training.folder import Result, Validation
from training.params.task import Task


class Hooks(Protocol):
    """Where one raises a TuneserveError, the job fails with it, but for `on_checkpoint`: that is told as a warning.

    EngineUnavailable and StoreUnavailable mean "not now": the hook is called again later. All may be called again after
    a restart.
    """

    async def prepare(self, job: Job, data: Path, validation: Validation) -> Task:
        """What to run, now that the job's folder of data has been looked at and nothing is wrong with it."""

    async def before_attempt(self, job: Job) -> None:
        """Comes before each start of a worker that is to run the job: what it reads must be there."""

    async def on_checkpoint(self, job: Job, attempt: int, folder: Path, step: int) -> None:
        """`folder` is the checkpoint's, and the checkpoint is in the table."""

    async def on_success(self, job: Job, attempt: int, folder: Path, result: Result) -> dict[str, Any]:
        """Comes before the job is marked so. `folder` is the attempt's; returns columns to set in the same moment."""


class NoHooks:
    async def prepare(self, job: Job, data: Path, validation: Validation) -> Task:
        return job.task()

    async def before_attempt(self, job: Job) -> None:
        pass

    async def on_checkpoint(self, job: Job, attempt: int, folder: Path, step: int) -> None:
        pass

    async def on_success(self, job: Job, attempt: int, folder: Path, result: Result) -> dict[str, Any]:
        return {}
