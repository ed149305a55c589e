"""The parameter that gives methods which learn from rewards one of OpenAI's graders as a judge."""

from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError

from engines.params.about import About
from engines.params.base import JsonObject, Params
from training.params.graders import parse_grader
from training.params.refusal import first_problem


def _sound(grader: Any) -> Any:
    """The grader as it is, where it is one."""
    if grader is not None:
        try:
            parse_grader(grader)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from None
    return grader


class GraderParams(Params):
    """A judge of answers. An addition to the reference's parameters."""

    grader: Annotated[
        JsonObject | None,
        BeforeValidator(_sound),
        About(text=True, not_in_fine_tuning="a fine-tuning job says it in method.reinforcement"),
    ] = None
    """What judges answers, as one of OpenAI's graders: https://platform.openai.com/docs/guides/graders. Its reward is
    added to those of `reward_funcs`."""
