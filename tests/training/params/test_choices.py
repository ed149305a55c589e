"""Names that transformers' trainer knows: ours are its own, and another one is refused before anything is loaded."""

from typing import get_args

import pytest
from pydantic import ValidationError
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SchedulerType

from training.params.choices import Reporter, Schedule
from training.params.sft import SftParams


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
