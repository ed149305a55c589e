"""What can be trained, and how: methods, tuners and optimizers, and what each of them refuses."""

import subprocess
import sys
from typing import Any

import pytest

from training import methods, optimizers, tuners
from training.methods import METHODS, methods_of
from training.optimizers import OPTIMIZERS
from training.params.sft import SftParams
from training.params.task import TASK
from training.tuners import TUNERS

HEAVY = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")


@pytest.mark.parametrize(
    "module", ["training.methods", "training.tuners", "training.optimizers", "training.params.task"]
)
def test_looking_them_up_loads_no_library(module: str) -> None:
    code = f"import sys, {module}; print(*({HEAVY} & sys.modules.keys()))".replace(str(HEAVY), str(set(HEAVY)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_chosen_by_what_it_says_chooses_it(name: str) -> None:
    method = METHODS[name]
    task = TASK.validate_python({"task": method.task, "params": dict(method.choice)})
    params: Any = task.params
    assert type(params) is method.params
    assert methods.method_of(params) is method
    assert name in methods_of(method.task)


GROUPS = {"reward_funcs": ["format"], "per_device_train_batch_size": 8}
ENOUGH: dict[str, dict[str, Any]] = {
    "grpo": GROUPS,
    "rloo": GROUPS,
    "ppo": {"reward_model": "r"},
    "trainable_tokens": {"trainable_token_indices": [3]},
}
"""What a method cannot do without, where it is more than to name something."""


@pytest.mark.parametrize("one", [*METHODS.values(), *TUNERS.values()], ids=lambda one: one.name)
def test_one_that_is_chosen_alone_is_not_refused(one: Any) -> None:
    if one.name in TUNERS:
        params = METHODS["sft"].params(train_type=one.name, **ENOUGH.get(one.name, {}))
    else:
        needed = {"per_device_train_batch_size": one.least_in_a_pass, **dict.fromkeys(one.needs, "x")}
        params = one.params(**one.choice, **needed | ENOUGH.get(one.name, {}))
    assert [*tuners.refusals(params), *methods.refusals(params), *optimizers.refusals(params)] == []


def test_a_name_without_a_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kto = METHODS["kto"]
    monkeypatch.delitem(METHODS, "kto")
    (refused,) = methods.refusals(kto.params(**kto.choice))
    assert refused[0] == "rlhf_type"
    assert refused[1].startswith("kto is not supported in this version; choose ")


def test_they_read_parameters_of_their_task() -> None:
    for method in METHODS.values():
        assert method.reads <= method.params.model_fields.keys()
    others: list[Any] = [*TUNERS.values(), *OPTIMIZERS]
    for other in others:
        assert other.reads <= SftParams.model_fields.keys()


def test_a_parameter_of_another_tuner_is_refused_with_the_name_of_that() -> None:
    assert tuners.refusals(SftParams(train_type="full", lora_bias="all")) == [
        ("lora_bias", "only train_type lora or longlora reads it")
    ]
