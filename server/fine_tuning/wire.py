"""A fine-tuning job, its events and its checkpoints as OpenAI's API tells them."""

from collections.abc import Sequence
from typing import Any

from server.fine_tuning.names import checkpoint_name
from server.fine_tuning.progress import checkpoint_metrics, tell
from server.fine_tuning.record import FineTuning
from server.jobs.job import Job, JobStatus
from server.jobs.store import JobCheckpoint, JobEvent
from training.folder import Event, JobError, Step

FILES = {"dataset": "training_file", "val_dataset": "validation_file"}
WRONG_VALIDATION_FILE = ("invalid_training_file", "validation_file")


def job_to_wire(job: Job, record: FineTuning, *, estimated_finish: int | None) -> dict[str, Any]:
    result = job.job_result() if job.status == JobStatus.SUCCEEDED else None
    error = job.job_error() if job.status == JobStatus.FAILED else None
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at),
        "finished_at": None if job.finished_at is None else int(job.finished_at),
        "estimated_finish": estimated_finish,
        "status": job.status.value,
        "error": None if error is None else _error_to_wire(error, record),
        "model": record.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": record.owner,
        "training_file": record.training_file,
        "validation_file": record.validation_file,
        "result_files": list(record.result_files),
        "trained_tokens": None if result is None else result.trained_tokens,
        "hyperparameters": record.hyperparameters,
        "method": record.method_to_wire,
        "seed": record.seed,
        "user_provided_suffix": record.suffix,
        "integrations": [],
        "metadata": job.metadata,
        "parameters": record.parameters,
    }


def _error_to_wire(error: JobError, record: FineTuning) -> dict[str, Any]:
    """With the names that the request has for what the worker names as the command line does."""
    param = f"parameters.{error.param}" if error.param in record.parameters else error.param
    param = FILES.get(param or "", param)
    code = "invalid_validation_file" if (error.code, param) == WRONG_VALIDATION_FILE else error.code
    return {"code": code, "message": error.message, "param": param}


def event_to_wire(event: JobEvent) -> dict[str, Any]:
    told = tell(event.event, attempt=event.attempt)
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": int(event.event.time),
        "level": told.level,
        "message": told.message,
        "type": told.type,
        "data": told.data or {},
    }


def checkpoint_to_wire(
    checkpoint: JobCheckpoint, record: FineTuning, *, job_id: str, events: Sequence[Event]
) -> dict[str, Any]:
    """`events` are those of the whole job."""
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(checkpoint.created_at),
        "fine_tuned_model_checkpoint": checkpoint_name(record.name, checkpoint.step),
        "fine_tuning_job_id": job_id,
        "step_number": checkpoint.step,
        "metrics": checkpoint_metrics(events, checkpoint.step),
    }


def estimate_finish(latest: Sequence[JobEvent]) -> int | None:
    """When the last step will be done if all take as long as these last ones did; None where nothing tells that."""
    attempt = max((event.attempt for event in latest), default=0)
    steps = [each.event for each in latest if each.attempt == attempt and isinstance(each.event, Step)]
    if not steps:
        return None
    first, last = min(steps, key=lambda step: step.step), max(steps, key=lambda step: step.step)
    if first.step == last.step:
        return None
    return int(last.time + (last.time - first.time) / (last.step - first.step) * (last.total_steps - last.step))
