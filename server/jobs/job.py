"""A job: what is to be run, how far it has come, and how it ended."""

from dataclasses import dataclass
from enum import StrEnum
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


ENDED = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
"""Nothing more comes of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row of the table of jobs. Times are Unix times."""

    id: str
    type: str
    """Name of its task."""
    status: JobStatus
    parameters: dict[str, Any]
    """Of its task, by the names of the command line, with real paths in them."""
    told: dict[str, Any] | None
    """The same as whoever created it through `/v1/jobs` has given them."""
    priority: int
    """Of two that wait, the one with the higher number runs first."""
    devices: int | None
    """GPUs that it runs on; 0: the CPU. One where there is one, unless given."""
    metadata: dict[str, str] | None
    fine_tuning: dict[str, Any] | None
    """What OpenAI's API tells of it, where it was created there."""
    fine_tuned_model: str | None
    """Name under which the result answers, once it is published."""
    attempt: int
    """How often it has been started. The last attempt is the one that counts: no earlier one changes anything."""
    deaths: int
    """Workers that died without saying why, since it was created or retried by hand."""
    validated: bool
    created_at: float
    queued_at: float | None
    """When it came into the queue, last."""
    not_before: float | None
    """A job whose worker died waits until then."""
    started_at: float | None
    """When its first worker was started."""
    finished_at: float | None
    error: dict[str, Any] | None
    """A JobError."""
    result: dict[str, Any] | None
    """The Result of the attempt that ended it."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def task(self) -> Task:
        return TASK.validate_python({"task": self.type, "params": self.parameters})

    def job_error(self) -> JobError | None:
        return None if self.error is None else JobError.model_validate(self.error)

    def job_result(self) -> Result | None:
        return None if self.result is None else Result.model_validate(self.result)


def given_parameters(task: Task) -> dict[str, Any]:
    """What of `task` was given, as a job's row keeps it."""
    return task.params.model_dump(mode="json", exclude_unset=True)
