"""A job: what is to be run, how far it has come, and how it ended."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from training.folder import JobError, Result
from training.params.task import TASK, Task


class JobStatus(StrEnum):
    """OpenAI's words."""

    VALIDATING = "validating_files"
    """Its data is being looked at."""
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
"""The terminal states: a job in one of them stays there unless a client asks for more."""
COUNTING = frozenset({JobStatus.RUNNING, JobStatus.PAUSED})
"""States in which the result of an attempt counts: a job that was told to pause may have been done before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row of the table of jobs. Times are Unix times."""

    id: str
    type: str
    """Name of its task."""
    status: JobStatus
    parameters: dict[str, Any]
    """Its task's parameters, by the names of the command line, with real paths in them."""
    told: dict[str, Any] | None
    """The same parameters as a client of `/v1/jobs` gave them."""
    priority: int
    """The job with the highest number in the queue runs first."""
    devices: int | None
    """Number of GPUs to run on; 0: the CPU. None: one GPU where there is one."""
    metadata: dict[str, str] | None
    fine_tuning: dict[str, Any] | None
    """What the fine-tuning API keeps of a job that was created there."""
    fine_tuned_model: str | None
    """Name under which the result answers, once it is published."""
    attempt: int
    """Number of the last attempt, 0 before the first. It is the one that counts: no earlier one changes anything."""
    deaths: int
    """Workers that died without saying why, since it was created or retried by hand."""
    validated: bool
    owner: str | None
    """Name of the key that made it, which also owns what it makes; None: nobody's."""
    created_at: float
    queued_at: float | None
    """When it last came into the queue."""
    not_before: float | None
    """Time to await before the next attempt, after a worker died."""
    started_at: float | None
    """When its first worker was started."""
    finished_at: float | None
    error: dict[str, Any] | None
    """A JobError as JSON."""
    result: dict[str, Any] | None
    """The Result, as JSON, of the attempt that ended it."""

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL

    @property
    def paths(self) -> set[Path]:
        """Files and folders that its parameters name."""
        values = self.parameters.values()
        texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
        return {Path(text) for text in texts if isinstance(text, str) and text.startswith("/")}

    def task(self) -> Task:
        return TASK.validate_python({"task": self.type, "params": self.parameters})

    def job_error(self) -> JobError | None:
        return None if self.error is None else JobError.model_validate(self.error)

    def job_result(self) -> Result | None:
        return None if self.result is None else Result.model_validate(self.result)


def given_parameters(task: Task) -> dict[str, Any]:
    """What of `task` was given, as a job's row keeps it."""
    return task.params.model_dump(mode="json", exclude_unset=True)
