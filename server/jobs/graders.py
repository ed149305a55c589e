"""Which graders judge in this server and its jobs."""

from engines.errors import InvalidRequest, UnsupportedParameter
from training.params.graders import OneGrader
from training.rewards.graders.grading import check_grader, python_graders

PYTHON_IS_OFF = "Python graders are off on this server, which runs them with --python_graders true only"


def check_offered(grader: OneGrader, *, runs_python: bool, embeds: bool = False, param: str = "grader") -> None:
    """Raises InvalidRequest, whose `param` begins with `param`, for what this server could not run. `embeds`: whether
    its model makes embeddings for it."""
    if python_graders(grader) and not runs_python:
        raise UnsupportedParameter(f"{param}: {PYTHON_IS_OFF}.", param=param)
    try:
        check_grader(grader, embeds=embeds)
    except InvalidRequest as error:
        raise type(error)(f"{param}.{error.message}", param=f"{param}.{error.param}") from None
