"""Every job that a worker process can run: a closed union, told apart by `task`. What a job's folder says to do."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from training.params.export import MergeParams
from training.params.rlhf import RlhfParams
from training.params.sft import PtParams, SftParams


class _Task(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SftTask(_Task):
    task: Literal["sft"] = "sft"
    params: SftParams


class PtTask(_Task):
    task: Literal["pt"] = "pt"
    params: PtParams


class RlhfTask(_Task):
    task: Literal["rlhf"] = "rlhf"
    params: RlhfParams


class MergeTask(_Task):
    task: Literal["merge"] = "merge"
    params: MergeParams


Task = Annotated[SftTask | PtTask | RlhfTask | MergeTask, Field(discriminator="task")]
TASK: TypeAdapter[Task] = TypeAdapter(Task)
"""`TASK.validate_python({"task": "sft", "params": {...}})`."""
