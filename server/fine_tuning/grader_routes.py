"""/v1/fine_tuning/alpha/graders, as OpenAI has it: whether a grader is sound, and what it says of an answer."""

from typing import Annotated, Any, get_args

from fastapi import APIRouter, Request
from pydantic import Field

from server.fine_tuning.graders import GradersDep
from server.http.body import StrictBody, json_body
from server.http.field_limits import JsonObject, Text
from server.http.keys.deps import CallerDep
from server.http.sse import until_disconnect
from training.params.graders import Grader, OneGrader
from training.rewards.graders.errors import ErrorKind
from training.rewards.graders.grading import Graded
from training.rewards.graders.judging import TokenUsage

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders")

DETAILS = {"python_grader_server_error": "python_grader_server_error_type"}
"""Where an error's details stand elsewhere than under its name with `_details`."""


class ValidateGrader(StrictBody):
    grader: Grader


class RunGrader(StrictBody):
    grader: Grader
    item: JsonObject = Field(default_factory=dict)
    """The row of data that asked."""
    model_sample: Text
    """The answer to be judged."""


@router.post("/validate")
async def validate_grader(
    body: Annotated[ValidateGrader, json_body(ValidateGrader)], graders: GradersDep, caller: CallerDep
) -> dict[str, Any]:
    """The grader as it was given."""
    await graders.check(body.grader, caller)
    return {"grader": body.grader.model_dump(mode="json", exclude_unset=True)}


@router.post("/run")
async def run_grader(
    request: Request, body: Annotated[RunGrader, json_body(RunGrader)], graders: GradersDep, caller: CallerDep
) -> dict[str, Any]:
    """An answer's reward. What goes wrong while it is judged is part of the answer, and its reward 0."""
    run = graders.run(body.grader, body.model_sample, body.item, caller)
    return graded_to_wire(body.grader, await until_disconnect(request, run))


def graded_to_wire(grader: OneGrader, graded: Graded) -> dict[str, Any]:
    usage = {model: _usage_to_wire(tokens) for model, tokens in graded.usage.items()}
    return {
        "reward": graded.reward,
        "metadata": {
            "name": grader.label,
            "type": grader.type,
            "errors": _errors_to_wire(graded),
            "execution_time": graded.seconds,
            "scores": {},
            "token_usage": sum(tokens["total_tokens"] for tokens in usage.values()) if usage else None,
            "sampled_model_name": next(iter(usage)) if len(usage) == 1 else None,
        },
        "sub_rewards": {name: part.reward for name, part in graded.parts.items()},
        "model_grader_token_usage_per_model": usage,
    }


def _errors_to_wire(graded: Graded) -> dict[str, Any]:
    """Whether each kind of error happened, and what was wrong: of several of a kind, the first."""
    details: dict[str, str] = {}
    for error in graded.errors():
        details.setdefault(error.kind, error.details)
    flags = {kind: kind in details for kind in get_args(ErrorKind)}
    return flags | {DETAILS.get(kind, f"{kind}_details"): details.get(kind) for kind in flags}


def _usage_to_wire(usage: TokenUsage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.total_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
    }
