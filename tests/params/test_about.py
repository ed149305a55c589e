"""What fields say of themselves fits what there is: readers, other names, what is handed on, what is shared."""

from typing import Any

import pytest

from engines.params.about import EVERY_ENGINE, About, facts
from engines.params.base import Params
from engines.params.deploy import DeployParams
from server.commands.params import COMMANDS
from training.methods import METHODS
from training.params.sft import SftParams
from training.params.task import TASKS, params_of
from training.refusals.supported import supported, unsupported

EVERYTHING = [(command, name, said) for command, model in COMMANDS.items() for name, said in facts(model)]


def test_readers_are_commands_and_engines_that_there_are() -> None:
    kinds = {"deploy", "page"}.union(*(task.reads_as for task in TASKS.values()))
    assert {reader for _, _, said in EVERYTHING for reader in said.readers} == kinds
    assert {engine for _, _, said in EVERYTHING for engine in said.engines} == set(EVERY_ENGINE)


def test_another_name_is_that_of_a_parameter_which_the_same_engines_read() -> None:
    said: dict[str, About] = dict(facts(DeployParams))
    for about in said.values():
        if about.same_as is not None:
            assert set(about.engines) <= set(said[about.same_as].engines)


def test_supported_choices_are_choices() -> None:
    for command, name, said in EVERYTHING:
        for choice in said.choices:
            required: dict[str, Any] = {"rlhf_type": "dpo"} if command == "rlhf" else {}
            COMMANDS[command].model_validate({**required, name: choice})


def test_what_is_trained_as_it_is_served_is_a_parameter_of_both() -> None:
    assert {name for name, said in facts(SftParams) if said.as_served} <= DeployParams.model_fields.keys()


@pytest.mark.parametrize("params", [params_of(task) for task in TASKS.values()], ids=lambda params: params.__name__)
def test_every_parameter_of_a_task_is_supported_or_refused(params: type[Params]) -> None:
    assert supported(params) | unsupported(params) == params.model_fields.keys()
    assert not supported(params) & unsupported(params)


def test_what_is_handed_on_is_an_argument_of_transformers() -> None:
    from transformers import TrainingArguments

    handed_on = {name for name, said in facts(METHODS["sft"].params) if said.trainer}
    assert handed_on <= TrainingArguments.__dataclass_fields__.keys()
