"""What a fine-tuning job may be created from, and what is refused by its name."""

import json
from typing import Any

import pytest

from engines.errors import InvalidRequest, UnsupportedParameter
from server.fine_tuning.body import CreateFineTuningJob
from server.http.body import parse_json
from training.auto import Hyperparameters

LEAST = {"model": "echo", "training_file": "file-1"}


def parse(**fields: Any) -> CreateFineTuningJob:
    return parse_json(CreateFineTuningJob, json.dumps(LEAST | fields).encode())


def test_the_least_is_supervised_with_everything_auto() -> None:
    body = parse()
    assert (body.method_name, body.wanted) == ("supervised", Hyperparameters())


def test_null_means_not_given() -> None:
    nulls = ("validation_file", "method", "hyperparameters", "suffix", "seed", "metadata", "integrations", "parameters")
    assert parse(**dict.fromkeys(nulls)) == parse()


def test_hyperparameters_are_taken_from_the_method_and_from_the_deprecated_place() -> None:
    numbers = {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    expected = Hyperparameters(n_epochs=2, learning_rate_multiplier=0.5)
    of_method = parse(method={"type": "supervised", "supervised": {"hyperparameters": numbers}})
    assert of_method.wanted == parse(hyperparameters=numbers).wanted == expected


def test_dpo_has_a_beta() -> None:
    body = parse(method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.5}}})
    assert (body.method_name, body.wanted) == ("dpo", Hyperparameters(beta=0.5))
    assert parse(method={"type": "dpo"}).wanted == Hyperparameters()


@pytest.mark.parametrize("name", ["orpo", "simpo", "cpo"])
def test_methods_beyond_openais_have_a_beta_too(name: str) -> None:
    body = parse(method={"type": name, name: {"hyperparameters": {"beta": 10, "n_epochs": 2}}})
    body.check_built()
    assert (body.method_name, body.wanted) == (name, Hyperparameters(beta=10, n_epochs=2))


def test_kto_has_weights_of_good_and_of_bad_answers() -> None:
    given: dict[str, Any] = {"beta": 0.2, "desirable_weight": 0, "undesirable_weight": 2.5, "batch_size": 2}
    body = parse(method={"type": "kto", "kto": {"hyperparameters": given}})
    body.check_built()
    assert (body.method_name, body.wanted) == ("kto", Hyperparameters(**given))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": ""}, "suffix"),
        ({"suffix": "a" * 65}, "suffix"),
        ({"suffix": "a:b"}, "suffix"),
        ({"suffix": "../up"}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"training_file": ""}, "training_file"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": "many"}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"learning_rate_multiplier": 1e5}}, "hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta"),
        ({"method": {"type": "magic"}}, "method.type"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}}, "method.dpo.hyperparameters.beta"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised"),
        ({"method": {"type": "dpo", "orpo": {}}}, "method.orpo"),
        (
            {"method": {"type": "kto", "kto": {"hyperparameters": {"batch_size": 1}}}},
            "method.kto.hyperparameters.batch",
        ),
        (
            {"method": {"type": "simpo", "simpo": {"hyperparameters": {"beta": 21}}}},
            "method.simpo.hyperparameters.beta",
        ),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a" * 65: "b"}}, None),
        ({"metadata": {str(key): "" for key in range(17)}}, "metadata"),
        ({"method": {"type": "dpo", "colour": "red"}}, "method.colour"),
        ({"parameters": []}, "parameters"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(InvalidRequest) as error:
        parse(**fields)
    if param is not None:
        assert (error.value.param or "method").startswith(param)


@pytest.mark.parametrize("name", ["rm", "ppo"])
def test_methods_that_are_not_supported_are_refused_by_name(name: str) -> None:
    body = parse(method={"type": name})
    with pytest.raises(UnsupportedParameter, match=name) as error:
        body.check_built()
    assert error.value.param == "method.type"


def test_integrations_are_refused_by_name() -> None:
    body = parse(integrations=[{"type": "wandb", "wandb": {"project": "p"}}])
    with pytest.raises(UnsupportedParameter, match="integrations"):
        body.check_built()
    parse(integrations=[]).check_built()


def test_two_places_for_hyperparameters_are_one_too_many() -> None:
    for method in ({"type": "supervised", "supervised": {}}, {"type": "dpo"}):
        with pytest.raises(InvalidRequest, match="hyperparameters") as error:
            parse(hyperparameters={}, method=method)
        assert error.value.param == "hyperparameters"


@pytest.mark.parametrize("metadata", [{"a": "\x00"}, {"\x00": "a"}])
def test_what_a_database_cannot_keep_is_refused(metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        parse(metadata=metadata)
