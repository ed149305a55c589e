"""Parameters of the command line that mean the same as a field of OpenAI's: said in either place, kept in one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engines.errors import InvalidRequest
from engines.params.about import facts
from server.fine_tuning.body import MOST_EPOCHS, MOST_SAMPLES
from training.auto import BASE_LEARNING_RATE, Hyperparameters
from training.methods import method_of
from training.params.sft import SftParams

SEED = "seed"
"""The one field of OpenAI's that is no hyperparameter."""
EVERY_METHODS = ("batch_size", "learning_rate_multiplier", "n_epochs")
"""Hyperparameters that every method has."""


@dataclass(frozen=True, slots=True)
class Said:
    wanted: Hyperparameters
    seed: int | None
    parameters: dict[str, Any]
    """What no field of OpenAI's stands for."""


def said_once(given: Mapping[str, Any], params: SftParams, wanted: Hyperparameters, seed: int | None) -> Said:
    """Move what has a field of OpenAI's there. `params` is `given`, parsed.

    Raises InvalidRequest where both places say it, or where that field could not say it.
    """
    fields = {SEED, *EVERY_METHODS, *method_of(params).hyperparameters}
    twins = {name: said.openai for name, said in facts(type(params)) if said.openai in fields}
    for name, field in twins.items():
        if name not in given:
            continue
        if (seed if field == SEED else getattr(wanted, field)) is not None:
            text = f"parameters.{name} means the same as {_place(field)}: give one of the two."
            raise InvalidRequest(text, param=f"parameters.{name}")
        if field == SEED:
            seed = params.seed
        else:
            wanted = replace(wanted, **{field: _translated(params, name)})
    return Said(wanted, seed, {name: value for name, value in given.items() if name not in twins})


def _place(field: str) -> str:
    return field if field == SEED else f"hyperparameters.{field}"


def _translated(params: SftParams, name: str) -> Any:
    """The value of OpenAI's field."""
    match name:
        case "learning_rate":
            return None if params.learning_rate is None else params.learning_rate / BASE_LEARNING_RATE
        case "num_train_epochs":
            return _epochs(params.num_train_epochs)
        case "gradient_accumulation_steps":
            return _batch(params)
        case _:
            return getattr(params, name)


def _epochs(epochs: float) -> int:
    if epochs != int(epochs) or epochs > MOST_EPOCHS:
        text = f"parameters.num_train_epochs is a whole number of at most {MOST_EPOCHS} here, not {epochs}."
        raise InvalidRequest(text, param="parameters.num_train_epochs")
    return int(epochs)


def _batch(params: SftParams) -> int:
    if method_of(params).rows == "prompts":
        text = "parameters.gradient_accumulation_steps cannot be chosen: say by batch_size how many prompts a step has."
        raise InvalidRequest(text, param="parameters.gradient_accumulation_steps")
    batch = params.gradient_accumulation_steps * params.per_device_train_batch_size
    if batch > MOST_SAMPLES:
        text = f"parameters.gradient_accumulation_steps makes batches of {batch}, and they have at most {MOST_SAMPLES}."
        raise InvalidRequest(text, param="parameters.gradient_accumulation_steps")
    return batch
