"""What a parameter and a field of OpenAI's both can say is said once."""

from typing import Any

import pytest

from engines.errors import InvalidRequest
from server.fine_tuning.parameters import parse
from server.fine_tuning.twins import Said, said_once
from training.auto import Hyperparameters
from training.methods import METHODS


def said(given: dict[str, Any], seed: int | None = None, **wanted: Any) -> Said:
    return said_once(given, parse(given, METHODS["dpo"]), Hyperparameters(**wanted), seed)


def test_parameters_with_a_field_of_openais_go_there() -> None:
    given = {"learning_rate": 1e-3, "num_train_epochs": 2.0, "beta": 0.3, "seed": 5, "lora_rank": 4}
    found = said(given | {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2})

    assert found.wanted.learning_rate_multiplier == pytest.approx(10)
    assert (found.wanted.n_epochs, found.wanted.batch_size, found.wanted.beta, found.seed) == (2, 6, 0.3, 5)
    assert found.parameters == {"lora_rank": 4, "per_device_train_batch_size": 2}


def test_what_is_not_said_stays_as_it_is() -> None:
    assert said({"lora_rank": 4}, seed=3, n_epochs=2) == Said(Hyperparameters(n_epochs=2), 3, {"lora_rank": 4})


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"learning_rate": 1e-3}, {"learning_rate_multiplier": 1.0}),
        ({"num_train_epochs": 2}, {"n_epochs": 2}),
        ({"gradient_accumulation_steps": 2}, {"batch_size": 2}),
        ({"beta": 0.1}, {"beta": 0.1}),
        ({"seed": 1}, {"seed": 1}),
    ],
)
def test_saying_it_twice_is_refused(given: dict[str, Any], fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="give one of the two") as error:
        said(given, **fields)
    assert error.value.param == f"parameters.{next(iter(given))}"


@pytest.mark.parametrize("given", [{"num_train_epochs": 0.5}, {"num_train_epochs": 51},
                                   {"gradient_accumulation_steps": 257}])  # fmt: skip
def test_what_openais_field_could_not_say_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as error:
        said(given)
    assert error.value.param == f"parameters.{next(iter(given))}"
