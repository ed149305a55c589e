"""Parameters of the command line that mean the same as a field of OpenAI's: said in either place, kept in one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engines.errors import InvalidRequest
from training.params.auto import BASE_LEARNING_RATE, Hyperparameters
from training.params.sft import SftParams

MOST_EPOCHS, MOST_SAMPLES = 50, 256
"""As OpenAI's fields allow."""


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
    for name, field, value in _twins(params):
        if name in given and (seed if field == "seed" else getattr(wanted, field)) is not None:
            text = f"parameters.{name} means the same as {_place(field)}: give one of the two."
            raise InvalidRequest(text, param=f"parameters.{name}")
        if name in given and field == "seed":
            seed = params.seed
        elif name in given:
            wanted = replace(wanted, **{field: value()})
    names = {name for name, _, _ in _twins(params)}
    return Said(wanted, seed, {name: value for name, value in given.items() if name not in names})


def _twins(params: SftParams) -> tuple[tuple[str, str, Callable[[], Any]], ...]:
    """The parameter, OpenAI's field, and its value there."""
    return (
        ("learning_rate", "learning_rate_multiplier", lambda: _multiplier(params)),
        ("num_train_epochs", "n_epochs", lambda: _epochs(params.num_train_epochs)),
        ("gradient_accumulation_steps", "batch_size", lambda: _batch(params)),
        ("beta", "beta", lambda: getattr(params, "beta", None)),
        ("seed", "seed", lambda: params.seed),
    )


def _place(field: str) -> str:
    return field if field == "seed" else f"hyperparameters.{field}"


def _multiplier(params: SftParams) -> float | None:
    return None if params.learning_rate is None else params.learning_rate / BASE_LEARNING_RATE


def _epochs(epochs: float) -> int:
    if epochs != int(epochs) or epochs > MOST_EPOCHS:
        text = f"parameters.num_train_epochs is a whole number of at most {MOST_EPOCHS} here, not {epochs}."
        raise InvalidRequest(text, param="parameters.num_train_epochs")
    return int(epochs)


def _batch(params: SftParams) -> int:
    batch = params.gradient_accumulation_steps * params.per_device_train_batch_size
    if batch > MOST_SAMPLES:
        text = f"parameters.gradient_accumulation_steps makes batches of {batch}, and they have at most {MOST_SAMPLES}."
        raise InvalidRequest(text, param="parameters.gradient_accumulation_steps")
    return batch
