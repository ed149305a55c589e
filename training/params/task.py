"""Every job that a worker process can run: a closed union, told apart by `task`. What a job's folder says to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, Union

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from engines.checkpoint.quantization import quantization_conflicts
from engines.params.about import DEPLOY, EVAL, EXPORT, INFER, MERGE, TRAINING, facts
from engines.params.base import Params
from engines.params.common import BaseParams
from engines.params.infer import InferParams
from engines.params.template import template_conflicts
from engines.refusals import said_twice, uncached, unquantised, unread, unspeculative
from training.params.eval import BASE, EvalParams
from training.params.export import ExportParams, MergeParams, calibration_data
from training.params.export_conflicts import conflicts
from training.params.export_result import made_of, result_folder
from training.params.hub import Fetch
from training.params.infer import AnswerParams
from training.params.refusal import Refusal, given
from training.params.rlhf import RlhfParams
from training.params.saved_args import read_beginning
from training.params.sft import PtParams, SftParams

FOR_UPLOADS = ("hub_model_id", "hub_private_repo", "commit_message")
Artifact = Literal["adapter", "model", "gguf", "answers", "scores"]
ANSWERS = "answers.jsonl"
"""File of a job's folder with the answers to a data set, a line each."""
OF_DATA = ("result_path", "val_dataset_sample", "metric", "logprobs", "ddp_backend")
"""Parameters of an inference over a data set."""
MEASURES = ("accuracy", "rouge", "bleu")
LOADED_HERE = (
    "adapters", "infer_backend", "model_revision", "engine_start_timeout", "engine_watchdog_timeout",
    "engine_max_restarts", "verbose",
)  # fmt: skip
"""What says how a model is loaded to be measured, beside what its engine reads."""
OF_SERVERS = ("model", "seed", "max_model_len")
"""What of that an evaluation of a server reads all the same."""
OF_EVALSCOPE = {
    "verbose": "the harness asks the engine without a server, where no request is logged: leave it out",
    "max_new_tokens": "a benchmark of the harness says it: leave it out",
}
"""Parameters of an evaluation that EvalScope alone reads, and why."""


class Task(BaseModel):
    """A command with its parameters, and all that the rest of the program knows of the command."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    reads_as: ClassVar[tuple[str, ...]]
    """What the fields that it reads name among their readers."""
    pipeline: ClassVar[str]
    """The module that does it. One above this package is known by its name alone."""
    makes: ClassVar[tuple[Artifact, ...]]
    """What may come of it."""
    gpus: ClassVar[int]
    """GPUs that it gets, where there are so many, unless somebody says."""
    one_device: ClassVar[bool] = True
    """Whether a process of it sees one GPU, where it is alone."""
    runs_engine: ClassVar[bool] = False
    """Whether it runs an engine, whose configuration is made of its parameters too."""
    keeps: ClassVar[tuple[str, ...]] = ()
    """Files of the job's folder from which the next attempt goes on, where one has died or was stopped."""

    task: str
    params: Params
    discreet: bool = False
    """Whether clients of an API get what it writes: its messages and checkpoints then name no folders of this machine.
    """

    fetch: Fetch | None = None
    """Where it names something on the hub by `hf://`: how that is fetched, by the process that looks at its data."""

    @property
    def training(self) -> SftParams | None:
        """Its parameters, where it is a training: it learns from data and writes checkpoints to go on from."""
        return None

    @property
    def data(self) -> BaseParams | None:
        """Parameters of the data set that it reads, where it reads one; those of a training, where it reads as one."""
        return self.training

    def missing(self) -> list[str]:
        """Parameters without which it cannot run, and which are not given."""
        return []

    def refusals(self) -> list[Refusal]:
        """What it needs and was not given, and parameters that do not go together."""
        return []

    def target(self) -> Path:
        """Where what a command makes is to be, if not in the folder of the run. Raises Conflict, InvalidAdapter."""
        raise NotImplementedError

    def completed(self) -> "Task":
        """The same task, which names all that it needs. Raises InvalidRequest."""
        return self

    def going_on_from(self, checkpoint: Path) -> "Task":
        """The same task, from a checkpoint of its own on, where it writes any."""
        return self

    def with_params(self, changes: Mapping[str, Any]) -> Self:
        """The same task with these parameters changed."""
        given = {name: getattr(self.params, name) for name in self.params.model_fields_set}
        return self.model_copy(update={"params": type(self.params).model_validate({**given, **changes})})


class TrainingTask(Task):
    reads_as = TRAINING
    pipeline = "training.pipelines.train"
    makes = ("adapter", "model")
    gpus = 1

    params: SftParams

    @property
    def training(self) -> SftParams:
        return self.params

    def missing(self) -> list[str]:
        goes_on = self.params.adapters or self.params.resume_from_checkpoint
        return [
            *([] if self.params.model or goes_on else ["model"]),
            *([] if self.params.dataset else ["dataset"]),
        ]

    def completed(self) -> Self:
        """With what the training began with whose checkpoint it resumes, unless it says so itself or loads nothing."""
        params = self.params
        if not params.resume_from_checkpoint or params.resume_only_model or not params.load_args:
            return self
        began = read_beginning(Path(params.resume_from_checkpoint).expanduser())
        return self.with_params({name: value for name, value in began.items() if name not in params.model_fields_set})

    def going_on_from(self, checkpoint: Path) -> Self:
        if self.params.save_only_model:  # its checkpoints do not say how far it had come
            return self
        changes: dict[str, Any] = {"resume_from_checkpoint": str(checkpoint)}
        if self.params.resume_only_model:  # which was said of another training's checkpoint: there it began
            changes |= {"resume_only_model": False} | read_beginning(checkpoint)
        return self.with_params(changes)


class SftTask(TrainingTask):
    task: Literal["sft"] = "sft"


class PtTask(TrainingTask):
    task: Literal["pt"] = "pt"
    params: PtParams


class RlhfTask(TrainingTask):
    task: Literal["rlhf"] = "rlhf"
    params: RlhfParams


class MergeTask(Task):
    reads_as = MERGE
    pipeline = "training.pipelines.merge"
    makes = ("model",)
    gpus = 0

    task: Literal["merge"] = "merge"
    params: MergeParams

    def refusals(self) -> list[Refusal]:
        missing = [] if self.params.adapters else [("adapters", "name the adapter to merge")]
        return missing + _uploads_nothing(self.params) + quantization_conflicts(self.params)

    def target(self) -> Path:
        return result_folder(self.params, "merged")


class ExportTask(Task):
    reads_as = MERGE + EXPORT
    pipeline = "training.pipelines.export"
    makes = ("model", "adapter", "gguf")
    gpus = 0

    task: Literal["export"] = "export"
    params: ExportParams

    @property
    def data(self) -> SftParams | None:
        return calibration_data(self.params)

    def refusals(self) -> list[Refusal]:
        return conflicts(self.params) + _uploads_nothing(self.params)

    def target(self) -> Path:
        return result_folder(self.params, made_of(self.params))


def _uploads_nothing(params: ExportParams) -> list[Refusal]:
    idle = [] if params.push_to_hub else given(params, FOR_UPLOADS)
    return [(name, "nothing is uploaded: set push_to_hub") for name in idle]


class InferTask(Task):
    """Answering a data set."""

    reads_as = INFER + DEPLOY
    pipeline = "server.infer.pipeline"
    makes = ("answers",)
    gpus = 1
    one_device = False
    runs_engine = True
    keeps = (ANSWERS,)

    task: Literal["infer"] = "infer"
    params: AnswerParams

    @property
    def data(self) -> AnswerParams | None:
        return self.params if self.params.names_data else None

    def missing(self) -> list[str]:
        return [
            *([] if self.params.model or self.params.adapters else ["model"]),
            *([] if self.params.names_data else ["dataset"]),
        ]

    def refusals(self) -> list[Refusal]:
        params = self.params
        found = [*_unfit_for_the_engine(params, self.reads_as), *template_conflicts(params)]
        if params.merge_lora and not params.adapters:
            found.append(("merge_lora", "name the adapter to merge, in adapters"))
        return found + (self._over_data() if params.answers_data else self._without_data())

    def _over_data(self) -> list[Refusal]:
        params, found = self.params, []
        if params.stream:
            found.append(("stream", "answers to a data set are written whole: leave it out"))
        if params.dataset and params.val_dataset:
            found.append(("dataset", "val_dataset is what is answered: give one of the two"))
        if len(params.adapters) > 1 and not params.merge_lora:
            found.append(("adapters", "one of them answers: give one, or merge_lora"))
        for name in params.metric:
            if name not in MEASURES and not params.custom_register_path:
                found.append(("metric", f"{name!r} is not known: choose {', '.join(MEASURES)}"))
        return found

    def _without_data(self) -> list[Refusal]:
        return [(name, "it is for a data set: name one as val_dataset") for name in given(self.params, OF_DATA)]


def _unfit_for_the_engine(params: InferParams, readers: tuple[str, ...]) -> list[Refusal]:
    """Parameters that another engine reads, mean the same, or do not go together."""
    of_engines = [name for name, said in facts(type(params)) if said.engines]
    found = [(name, why) for name in given(params, of_engines) if (why := unread(params, name, readers))]
    found += [(one, f"it means the same here as {other}: give one") for one, other in said_twice(params)]
    return [*found, *unquantised(params), *unspeculative(params), *uncached(params)]


class EvalTask(Task):
    """Measuring a model."""

    reads_as = EVAL
    pipeline = "training.pipelines.eval"
    makes = ("scores",)
    gpus = 1
    one_device = False
    runs_engine = True

    task: Literal["eval"] = "eval"
    params: EvalParams

    def missing(self) -> list[str]:
        return [name for name in ("model", "eval_dataset") if not getattr(self.params, name)]

    def refusals(self) -> list[Refusal]:
        params = self.params
        missing = [] if params.eval_dataset else [("eval_dataset", "name the benchmarks")]
        if not params.model and not params.eval_url:
            missing.append(("model", "name the model to measure, or the server at eval_url"))
        if params.eval_backend != "evalscope":
            missing += [(name, OF_EVALSCOPE[name]) for name in given(params, OF_EVALSCOPE)]
        if params.compare == BASE and not params.adapters and not params.eval_url:
            missing.append(("compare", f"{BASE} is the model without its adapters, and none are named"))
        if params.eval_url:
            loading = [name for name, said in facts(type(params)) if said.engines or name in LOADED_HERE]
            idle = given(params, [name for name in loading if name not in OF_SERVERS])
            return missing + [(name, "the server at eval_url says so itself: leave it out") for name in idle]
        idle = given(params, ("eval_api_key",))
        missing += [(name, "only eval_url has a use for it") for name in idle]
        return missing + _unfit_for_the_engine(params, self.reads_as)


TASKS: dict[str, type[Task]] = {
    task.model_fields["task"].get_default(): task
    for task in (SftTask, PtTask, RlhfTask, MergeTask, ExportTask, InferTask, EvalTask)
}
"""By their names. The only list of them."""
TASK: TypeAdapter[Task] = TypeAdapter(
    Annotated[Union[*TASKS.values()], Field(discriminator="task")],  # type: ignore[arg-type]  # built at run time
    config=ConfigDict(defer_build=True),
)
"""`TASK.validate_python({"task": "sft", "params": {...}})`."""


def params_of(task: type[Task]) -> type[Params]:
    params: type[Params] = task.model_fields["params"].annotation  # type: ignore[assignment]
    return params
