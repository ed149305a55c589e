"""No parameter of a training is accepted and ignored: what is supported is what the code reads."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.params.about import facts
from training.params.rlhf import RlhfParams
from training.params.supported import refusals, supported
from training.params.task import TASK, TASKS, params_of

ROOT = Path(__file__).parents[3]
ALL = frozenset().union(*(params_of(task).model_fields for task in TASKS.values()))
SUPPORTED = frozenset().union(*(supported(params_of(task)) for task in TASKS.values()))
HANDED_ON = {name for name, said in facts(RlhfParams) if said.trainer}


SCHEMA_HOLDS = {"merge_lora", "safe_serialization", "task_type", "template_backend", "rlhf_type"}
"""Parameters that take one value only, as the schema says; `rlhf_type` is read as `method`."""


def parameters_read() -> set[str]:
    """By what makes folders and runs them: training without the schema, and the command line's choice of folder."""
    files = [f for f in (ROOT / "training").rglob("*.py") if ROOT / "training" / "params" not in f.parents]
    found = {name for file in [*files, ROOT / "server" / "commands" / "output_folder.py"] for name in reads(file)}
    return (found | HANDED_ON | SCHEMA_HOLDS) & ALL


def reads(file: Path) -> Iterator[str]:
    """Names read as `params.NAME`, whatever comes before or stands in front of `params`."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Attribute(value=ast.Attribute(attr=owner) | ast.Name(id=owner), attr=name):
                if owner.endswith("params"):
                    yield name


def test_what_the_code_reads_is_what_is_said_to_be_supported() -> None:
    assert parameters_read() == SUPPORTED


def test_what_a_field_says_of_tasks_names_tasks_that_there_are() -> None:
    named = {task for params in map(params_of, TASKS.values()) for _, said in facts(params) for task in said.tasks}
    assert named == {"deploy", *TASKS}


@pytest.mark.parametrize(
    ("task", "params", "refused"),
    [
        ("sft", {"use_galore": True}, "use_galore"),
        ("sft", {"train_type": "vera"}, "train_type"),
        ("sft", {"init_weights": "lora-ga"}, "init_weights"),
        ("sft", {"train_type": "full", "lora_rank": 4}, "lora_rank"),
        ("sft", {"freeze_parameters": ["a"]}, "freeze_parameters"),
        ("sft", {"streaming": True}, "max_steps"),
        ("sft", {"temperature": 0.5}, "temperature"),
        ("sft", {"loss_scale": "react"}, "loss_scale"),
        ("rlhf", {"rlhf_type": "orpo"}, "rlhf_type"),
        ("rlhf", {"rlhf_type": "dpo", "packing": True}, "packing"),
        ("rlhf", {"rlhf_type": "dpo", "loss_scale": "last_round"}, "loss_scale"),
        ("merge", {"adapters": ["a"], "train_type": "full"}, "train_type"),
        ("merge", {}, "adapters"),
        ("merge", {"adapters": ["a"], "safe_serialization": False}, "safe_serialization"),
        ("merge", {"adapters": ["a"], "quant_method": "gptq"}, "quant_method"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_parameter_given_in_vain_is_refused_by_name(task: str, params: dict[str, Any], refused: str) -> None:
    found = refusals(TASK.validate_python({"task": task, "params": params}))

    assert [name for name, _ in found] == [refused]


def test_a_parameter_at_its_default_asks_for_nothing() -> None:
    assert refusals(TASK.validate_python({"task": "sft", "params": {"use_galore": False, "lora_rank": 16}})) == []


def test_every_parameter_of_a_task_has_an_answer() -> None:
    assert set(RlhfParams.model_fields) > supported(RlhfParams)
