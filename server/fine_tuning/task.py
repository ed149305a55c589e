"""From a fine-tuning request to what the worker process is told: the same task as the command line's."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from engines.params.about import facts
from engines.params.deploy import DeployParams
from engines.text.templates import read_chat_template
from server.fine_tuning.record import FineTuning
from server.model.served import model_source
from training.auto import BASE_LEARNING_RATE, Hyperparameters
from training.methods import BY_OPENAI_NAME
from training.params.graders import asking
from training.params.sft import SftParams
from training.params.task import TASK, TrainingTask

AS_SERVED = frozenset(name for name, said in facts(SftParams) if said.as_served)
"""Parameters of `deploy` that the training repeats."""
MOST_SAMPLES_A_PASS = 4
"""Samples of a batch in one forward pass, unless `per_device_train_batch_size` says how many. Gradients of the passes
are accumulated, which costs no memory."""
MOST_LOG_LINES = 2000
"""Steps that a job logs: each of a short training, and every so many of a long one."""
MOST_CHECKPOINTS = 100


class TooManyCheckpoints(ValueError):
    """`save_steps` asks for so many that they would fill the disk, each published under its own name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFiles:
    training: Path
    validation: Path | None
    adapter: Path | None
    """Folder of the adapter that training begins with."""


def first_task(record: FineTuning, files: DataFiles, served: DeployParams) -> TrainingTask:
    """What is known before anybody looked at the data, which is enough to look at it."""
    known = {**_fixed(record, files, served), **_of_hyperparameters(record, record.wanted), **record.parameters}
    if (answers := BY_OPENAI_NAME[record.method].answers_to_a_row(known)) > 1:
        known |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": answers}
    return _task(record, known)


def final_task(
    record: FineTuning, files: DataFiles, served: DeployParams, *, chosen: Hyperparameters, rows: int
) -> TrainingTask:
    """The whole task. Raises TooManyCheckpoints."""
    assert chosen.n_epochs and chosen.batch_size and chosen.learning_rate_multiplier
    known = {**_of_hyperparameters(record, chosen), **record.parameters}
    answers = chosen.batch_size * BY_OPENAI_NAME[record.method].answers_to_a_row(known)
    in_a_pass = samples_in_a_pass(
        answers,
        record.parameters.get("per_device_train_batch_size"),
        least=BY_OPENAI_NAME[record.method].least_in_a_pass,
    )
    steps = math.ceil(rows / chosen.batch_size) * chosen.n_epochs * record.parameters.get("num_iterations", 1)
    if (most := record.parameters.get("max_steps", -1)) > 0:
        steps = most
    numbers: dict[str, Any] = {
        "logging_steps": max(1, math.ceil(steps / MOST_LOG_LINES)),
        **known,
        "num_train_epochs": chosen.n_epochs,
        "learning_rate": chosen.learning_rate_multiplier * BASE_LEARNING_RATE,
        "per_device_train_batch_size": in_a_pass,
        "gradient_accumulation_steps": answers // in_a_pass,
    }
    task = _task(record, {**_fixed(record, files, served), **numbers})
    _check_checkpoints(task.params, steps)
    return task


def _of_hyperparameters(record: FineTuning, given: Hyperparameters) -> dict[str, Any]:
    """The parameters that the method's own hyperparameters come to, as far as they are known."""
    method = BY_OPENAI_NAME[record.method]
    said = {name: getattr(given, name) for name in method.hyperparameters}
    known = {name: value for name, value in said.items() if value is not None}
    return method.of_openai({**method.hyperparameters, **known})


def samples_in_a_pass(batch_size: int, most: int | None, *, least: int = 1) -> int:
    """The largest part of a batch that divides it and is not larger than `most`, nor less than `least`; the whole batch
    where there is none."""
    limit = min(batch_size, most or MOST_SAMPLES_A_PASS)
    return next((part for part in range(limit, least - 1, -1) if batch_size % part == 0), batch_size)


def _fixed(record: FineTuning, files: DataFiles, served: DeployParams) -> dict[str, Any]:
    """What `parameters` may replace, where a client may choose it at all."""
    repeated = {name: getattr(served, name) for name in AS_SERVED if name in served.model_fields_set}
    if "template" in record.parameters or record.brings_template:
        repeated = {name: value for name, value in repeated.items() if name not in ("template", "chat_template")}
    elif served.chat_template is not None:
        repeated["chat_template"] = read_chat_template(served.chat_template)  # itself: its file is the server's
    if record.template_kwargs is not None:
        repeated["chat_template_kwargs"] = {**(served.chat_template_kwargs or {}), **record.template_kwargs}
    validation = {"split_dataset_ratio": 0} if files.validation is None else {"val_dataset": [str(files.validation)]}
    stretched = {"max_length": served.max_length or served.max_model_len} if served.rope_scaling else {}
    begun = {} if files.adapter is None else {"adapters": [str(files.adapter)]}
    return {
        **repeated,
        **stretched,
        **validation,
        **begun,
        "model": model_source(served),
        "dataset": [str(files.training)],
        "strict": True,
        "load_args": False,
        "seed": record.seed,
        "save_strategy": "steps" if "save_steps" in record.parameters else "epoch",
        "report_to": ["tensorboard"],
    }


def _task(record: FineTuning, values: dict[str, Any]) -> TrainingTask:
    method = BY_OPENAI_NAME[record.method]
    judged = {} if record.grader is None else {"grader": asking(record.grader, values["model"])}
    formed = {} if record.response_format is None else {"response_format": record.response_format}
    params = {**method.openai_defaults, **values, **method.choice, **judged, **formed}
    return cast(TrainingTask, TASK.validate_python({"task": method.task, "params": params}))


def _check_checkpoints(params: SftParams, steps: int) -> None:
    if params.save_strategy != "steps":
        return
    every = params.save_steps if params.save_steps >= 1 else max(1.0, params.save_steps * steps)
    if steps / every > MOST_CHECKPOINTS:
        raise TooManyCheckpoints(
            f"save_steps {params.save_steps:g} would make {steps / every:.0f} checkpoints in {steps} steps, and "
            f"here {MOST_CHECKPOINTS} are the most"
        )
