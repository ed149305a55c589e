"""A job's folder: the only thing that a worker process and whoever started it share.

    task.json        what to do: the parameters that were given, by whoever makes the folder
    validation.json  what a look at the data found, by `python -m training.validate FOLDER`
    events.jsonl     what happened, a line each, appended by the worker
    .partial/        where a checkpoint grows until it has its name
    checkpoint-N/    the training after N steps, whole as soon as it has this name
    runs/            TensorBoard's files
    answers.jsonl    the answers to a data set, a line each
    ref_log_probs.safetensors  what a reference model says of the data, where it was computed before training
    worker.log       what the worker says, caught by whoever started it
    result.json      how it ended, by the worker as the last thing it does

`python -m training.run FOLDER` does what task.json says. A folder is run once: to go on from a checkpoint is a new
folder whose task names it in `resume_from_checkpoint`. So two processes never write to the same place, and a folder
can be copied, looked at and run again anywhere. It holds no secrets: those of a task come to the worker through its
environment (`engines.params.secrets`).
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from engines.adapters.disk import sync
from engines.params.model import TaskType
from engines.params.secrets import with_secrets
from training.discreet import without_folders
from training.params.saved_args import ARGS
from training.params.task import TASK, Artifact, Task

PARTIAL = ".partial"
LOG = "worker.log"
"""What the libraries in the worker say."""
BEFORE_A_STEP = (ARGS, "events.jsonl", "validation.json", LOG, "result.json", "task.json")
"""What may lie in a folder before anything is learned."""


class _Written(BaseModel):
    # A reader may be older or newer than the writer.
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class JobError(_Written):
    """Why a job failed, in words for the person who asked for it."""

    code: str
    message: str
    param: str | None = None

    def without_folders(self) -> "JobError":
        return self.model_copy(update={"message": without_folders(self.message)})


class Message(_Written):
    type: Literal["message"] = "message"
    time: float
    """Unix time, as in all events."""
    level: Literal["info", "warn", "error"] = "info"
    message: str


class Started(_Written):
    """The first step is about to begin."""

    type: Literal["started"] = "started"
    time: float
    total_steps: int
    rows: int | None
    """Samples in an epoch; None where the data is streamed."""


class Step(_Written):
    """A step was logged."""

    type: Literal["step"] = "step"
    time: float
    step: int
    total_steps: int
    epoch: float
    metrics: dict[str, float]
    """`loss`, `learning_rate`, `grad_norm`, `token_accuracy`, and what the algorithm adds (DPO's `rewards/margins`)."""


class Evaluation(_Written):
    type: Literal["evaluation"] = "evaluation"
    time: float
    step: int
    metrics: dict[str, float]
    """`loss`, `token_accuracy`, ... of the validation data."""


class Checkpoint(_Written):
    """`checkpoint-STEP/` is whole."""

    type: Literal["checkpoint"] = "checkpoint"
    time: float
    step: int
    path: str
    """Within the folder."""


Event = Annotated[Message | Started | Step | Evaluation | Checkpoint, Field(discriminator="type")]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)


class Validation(_Written):
    """What a look at the data found. Where `error` is set, nothing must be trained."""

    rows: int = 0
    """Usable rows of the training data."""
    tokens: int | None = None
    """Tokens of one epoch, where they were counted."""
    model_parameters: int | None = None
    """Weights of the model to train."""
    fetched: dict[str, Any] = {}
    """Parameters that named something on the hub, with the folders of what was fetched from there."""
    error: JobError | None = None


class Fit(_Written):
    """Other values of parameters, and what the training would take with them."""

    parameters: dict[str, Any]
    total: int
    """Bytes."""
    fits: bool


class Memory(_Written):
    """What a training takes of its device's memory beside the libraries, as estimated before it: bytes at the moment at
    which most is in use."""

    parts: dict[str, int]
    """`weights`, `gradients`, `optimizer`, `activations`, `logits`, on a CPU `kernels`, and what the method adds."""
    total: int
    device: str
    available: int
    """Bytes that are free there now."""
    fits: bool
    texts: int
    """Of the largest batch."""
    tokens: int
    """Of each of its texts."""
    smaller: tuple[Fit, ...] = ()
    """Where it does not fit: changes that take less."""


class Result(_Written):
    """How a run ended. No result.json: the process died."""

    status: Literal["succeeded", "failed", "stopped"]
    """`stopped`: on SIGTERM, with a checkpoint to go on from, where there was anything to keep."""
    error: JobError | None = None
    artifact: str | None = None
    """What was made, as a path within the folder: an adapter (`adapter_config.json`), a model (`config.json`), a folder
    of GGUF files, or a file of answers."""
    kind: Artifact | None = None
    task_type: TaskType | None = None
    """What that is for: to continue texts, or to judge them by a head."""
    final_step: int | None = None
    trained_tokens: int | None = None
    """Tokens that went through the model in all steps."""
    metrics: dict[str, float] = {}
    memory: Memory | None = None
    """What it would take, where nothing was to be trained (`dry_run`)."""


class JobFolder:
    """Reads and writes the files of one folder. Those of one kind have one writer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # ---- by whoever starts the worker

    def clear(self) -> bool:
        """Forget a run that failed before its first step, as where a model's name was mistyped. Whether no run is
        left."""
        if not (self.path / "task.json").exists():
            return True
        result = self.read_result()
        began = any(event.type == "started" for event, _ in self.read_events())
        if result is None or result.status != "failed" or began:
            return False
        if any(path.name not in BEFORE_A_STEP for path in self.path.iterdir()):
            return False
        for name in BEFORE_A_STEP:
            (self.path / name).unlink(missing_ok=True)
        return True

    def write_task(self, task: Task) -> None:
        self._write("task.json", task.model_dump_json(exclude_unset=True, by_alias=False))

    def read_task(self, environment: Mapping[str, str] | None = None) -> Task:
        """The task, with the secrets that the environment holds for it: the process's, unless another is given.

        Raises OSError, pydantic's ValidationError.
        """
        task = TASK.validate_json((self.path / "task.json").read_bytes())
        return task.model_copy(
            update={"params": with_secrets(task.params, os.environ if environment is None else environment)}
        )

    def read_events(self, offset: int = 0) -> Iterator[tuple[Event, int]]:
        """Each whole line from byte `offset` on, with the offset after it. What is no event is passed over."""
        try:
            file = (self.path / "events.jsonl").open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # being written
                offset += len(line)
                try:
                    yield EVENT.validate_json(line), offset
                except ValueError:
                    continue

    def read_result(self) -> Result | None:
        data = self._read("result.json")
        return None if data is None else Result.model_validate_json(data)

    def read_validation(self) -> Validation | None:
        data = self._read("validation.json")
        return None if data is None else Validation.model_validate_json(data)

    def checkpoints(self) -> list[int]:
        """The steps of the checkpoints that are whole, in rising order."""
        found = (path.name.removeprefix("checkpoint-") for path in self.path.glob("checkpoint-*"))
        return sorted(int(step) for step in found if step.isdecimal())

    # ---- by the worker

    def append(self, event: Event) -> None:
        with (self.path / "events.jsonl").open("ab") as file:
            file.write(event.model_dump_json().encode() + b"\n")

    def write_result(self, result: Result) -> None:
        self._write("result.json", result.model_dump_json())

    def remove_result(self) -> None:
        (self.path / "result.json").unlink()

    def write_validation(self, validation: Validation) -> None:
        self._write("validation.json", validation.model_dump_json())

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, name: str, text: str) -> None:
        """All of it or nothing, whenever the machine stops."""
        partial = self.path / f".{name}.{os.getpid()}"
        partial.write_text(text)
        sync(partial)
        partial.rename(self.path / name)
        sync(self.path)
