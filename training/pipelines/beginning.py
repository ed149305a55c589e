"""What a training begins with: the base model, or what was trained before."""

from pathlib import Path
from typing import Any, TypeVar

from engines.errors import InvalidRequest
from engines.params.quantization import QuantizationParams
from training.folder import JobFolder
from training.params.saved_args import read_given
from training.params.sft import SftParams
from training.processes import Processes
from training.sharding import redivided
from training.sharding.zero import configuration, stage
from training.tuners import tuner_of

P = TypeVar("P", bound=SftParams)


def with_beginning(params: P) -> P:
    """`params` in which `model` and `adapters` say all of what there is before the first step.

    Weights that `resume_only_model` takes from a checkpoint are what the training begins with, as if that were named
    there: a training that is interrupted later has to begin with them again, and its reference is made of them.

    Raises InvalidRequest where a checkpoint to resume belongs to a training that began with something else.
    """
    if params.resume_from_checkpoint is None:
        return params
    checkpoint = Path(params.resume_from_checkpoint).expanduser()
    if not checkpoint.is_dir():
        raise InvalidRequest(f"there is no folder {checkpoint.name!r}", param="resume_from_checkpoint")
    if steps := JobFolder(checkpoint).checkpoints():
        message = (
            f"{checkpoint.name} is the folder of a training: name a checkpoint in it, such as checkpoint-{steps[-1]}"
        )
        raise InvalidRequest(message, param="resume_from_checkpoint")
    if not params.resume_only_model:
        _check_same(params, checkpoint)
        return params
    makes_model = tuner_of(params).makes == "model"
    trained: dict[str, Any] = {"model": str(checkpoint)} if makes_model else {"adapters": (str(checkpoint),)}
    return params.model_copy(update={"resume_from_checkpoint": None, "resume_only_model": False, **trained})


def _check_same(params: SftParams, checkpoint: Path) -> None:
    """Whether it is an adapter that `adapters` name, and the same as before, is found out when it is loaded."""
    saved = read_given(checkpoint)
    if saved is None:
        return
    train_type = saved.get("train_type", "lora")
    if train_type != params.train_type:
        message = f"{checkpoint.name} was trained with train_type {train_type}, not {params.train_type}"
        raise InvalidRequest(message, param="train_type")
    for name, field in QuantizationParams.model_fields.items():
        before, now = saved.get(name, field.default), getattr(params, name)
        if before != now:
            raise InvalidRequest(f"{checkpoint.name} was trained with {name} {before}, not {now}", param=name)
    if (was := _kept(saved.get("deepspeed"), saved.get("fsdp"))) != (now := _kept(params.deepspeed, params.fsdp)):
        message = (
            f"{checkpoint.name} was trained with {was}, not {now}: only its weights can be used, by resume_only_model"
        )
        raise InvalidRequest(message, param="fsdp" if "fsdp" in (was, now) else "deepspeed")
    if params.deepspeed is not None and redivided.is_of_others(checkpoint, Processes.of_environment().count):
        _check_redivided(checkpoint.name, saved["deepspeed"], params.deepspeed)
    if bool(saved.get("adapters")) != bool(params.adapters):
        began = "the adapter that is to be named here" if saved.get("adapters") else "a new adapter: leave this out"
        raise InvalidRequest(f"the training of {checkpoint.name} began with {began}", param="adapters")


def _check_redivided(name: str, *asked: Any) -> None:
    for part in redivided.UNKNOWN:
        if any(configuration(each)["zero_optimization"].get(part) for each in asked):
            message = f"{name} was written by another number of processes, which cannot go on with {part}: take as many"
            raise InvalidRequest(message, param="deepspeed")


def _kept(deepspeed: Any, fsdp: str | None) -> str:
    """As what the weights and the optimizer of a training lie in its checkpoints."""
    if deepspeed is not None:
        return f"deepspeed in stage {stage(deepspeed)}"
    return "fsdp" if fsdp else "neither deepspeed nor fsdp"
