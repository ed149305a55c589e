"""Names that transformers' trainer knows: ours are its own, and another one is refused before anything is loaded."""

from inspect import signature
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR
from transformers.trainer_utils import SchedulerType

from training.params.choices import Reporter, Schedule
from training.params.sft import SftParams
from training.params.task import TASK
from training.refusals.idle import idle
from training.refusals.reporters import PACKAGES
from training.refusals.schedules import SETTINGS
from training.refusals.supported import refusals


def test_the_schedules_are_the_librarys() -> None:
    assert set(get_args(Schedule)) == {schedule.value for schedule in SchedulerType}


def test_the_reporters_are_the_librarys() -> None:
    assert set(get_args(Reporter)) == {*INTEGRATION_TO_CALLBACK, "all", "none"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"lr_scheduler_type": "cosin"}, "'linear', 'cosine'"),
        ({"report_to": ["tensorbord"]}, "'tensorboard'"),
        ({"report_to": ["none", "wandb"]}, "none stands alone"),
        ({"report_to": ["wandb", "all"]}, "all stands alone"),
    ],
    ids=str,
)
def test_another_name_is_refused_with_the_choices(given: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        SftParams.model_validate(given)


@pytest.mark.parametrize("given", ["none", ["tensorboard", "wandb"], "all"])
def test_reporters_are_given_one_or_several(given: str | list[str]) -> None:
    assert SftParams.model_validate({"report_to": given}).report_to == (
        (given,) if isinstance(given, str) else tuple(given)
    )


@pytest.mark.parametrize("reporter", sorted({*INTEGRATION_TO_CALLBACK} - {"kubeflow"}))
def test_a_reporter_whose_package_is_missing_is_refused_where_the_library_would_fail(reporter: str) -> None:
    task = TASK.validate_python({"task": "sft", "params": {"report_to": reporter}})
    told = [reason for name, reason in refusals(task) if name == "report_to"]
    try:
        INTEGRATION_TO_CALLBACK[reporter]()
    except (RuntimeError, ImportError, ValueError):
        assert told and "needs the package" in told[0] and reporter in told[0]
    else:
        assert not told


def test_every_reporter_says_what_it_needs() -> None:
    assert PACKAGES.keys() == set(get_args(Reporter)) - {"all", "none"}


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("settings", [None, {"min_lr": 1e-5}, {"num_decay_steps": 2}, {"power": 2.0}], ids=str)
def test_a_schedule_that_the_library_would_not_make_is_refused_at_once(
    schedule: Any, settings: dict[str, Any] | None
) -> None:
    params = SftParams(lr_scheduler_type=schedule, lr_scheduler_kwargs=settings)
    refused = any(name == "lr_scheduler_kwargs" for name, _ in idle(params))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    made = make(schedule, optimizer, settings)

    assert refused == (made != "made" or (schedule.startswith("constant") and settings is not None)), made


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_the_settings_of_a_schedule_are_the_librarys(schedule: str) -> None:
    made_by: dict[str, Any] = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": GreedyLR}
    function = made_by.get(schedule) or TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(schedule)]
    ours = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}

    assert SETTINGS[schedule] == signature(function).parameters.keys() - ours


def make(schedule: str, optimizer: torch.optim.Optimizer, settings: dict[str, Any] | None) -> str:
    try:
        get_scheduler(schedule, optimizer, num_warmup_steps=1, num_training_steps=9, scheduler_specific_kwargs=settings)
    except (TypeError, ValueError) as error:
        return str(error)
    return "made"
