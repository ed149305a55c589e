"""What an evaluation is told of the model: every parameter reaches the engine, also where a server runs it."""

from typing import Any

import pytest

from engines.params.about import facts
from engines.params.deploy import DeployParams
from tests.params.behaviour.table import another_value
from training.evaluation.on_engine import AT_ONCE, on_engine
from training.evaluation.served import settings_of
from training.params.eval import EvalParams
from training.params.task import LOADED_HERE

NAMED = sorted(
    name
    for name, said in facts(DeployParams)
    if (said.engines or name in LOADED_HERE) and not said.secret and name not in ("model", "adapters")
)


@pytest.mark.parametrize("name", NAMED)
def test_what_an_engine_reads_reaches_it(name: str) -> None:
    value = 60 if name == "engine_watchdog_timeout" else another_value(EvalParams, name, None)
    params = EvalParams.model_validate({"model": "m", name: value})
    by_server = DeployParams.model_validate(settings_of(params))
    assert getattr(by_server, name) == getattr(on_engine(params), name) == getattr(params, name)
    assert getattr(params, name) != getattr(EvalParams(model="m"), name)


@pytest.mark.parametrize(
    ("given", "slots"),
    [({}, AT_ONCE), ({"eval_num_proc": 5}, 5), ({"max_num_seqs": 7}, 7), ({"max_num_seqs": 7, "eval_num_proc": 5}, 7)],
)
def test_the_engine_has_room_for_the_questions(given: dict[str, Any], slots: int) -> None:
    assert on_engine(EvalParams(model="m", **given)).max_num_seqs == slots


def test_the_adapter_that_is_measured_is_asked_by_a_name_of_its_own() -> None:
    settings = settings_of(EvalParams(model="/models/m", adapters=("x=/adapters/a",)))
    assert (settings["adapters"], settings["served_model_name"], settings["max_loras"]) == (
        ["measured=/adapters/a"],
        "m",
        1,
    )
