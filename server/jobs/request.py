"""The body of POST /v1/jobs: a command with its parameters, but for what a client may not choose."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from engines.errors import InvalidRequest, UnsupportedParameter
from engines.params.about import NOT_SUPPORTED, About, closed_to_api, facts
from server.http.body import Metadata, StrictBody
from server.http.field_limits import Options
from server.http.validation import MISSING, to_invalid_request
from training.params.task import TASK, TASKS, Task, params_of
from training.refusals.supported import refusals


def _supported(type: str) -> str:
    if type not in TASKS:
        *others, last = TASKS
        raise PydanticCustomError("type", f"{type[:50]!r} is {NOT_SUPPORTED}; choose {', '.join(others)} or {last}")
    return type


JobType = Annotated[str, AfterValidator(_supported), Field(json_schema_extra={"enum": [*TASKS]})]
"""Name of a task."""


class JobBody(StrictBody):
    type: JobType
    parameters: Options
    """Those of the command line's command of this name."""
    priority: int = Field(0, ge=-100, le=100)
    """The job with the highest number in the queue runs first. Above 0 for keys with the role admin only."""
    metadata: Metadata | None = None
    devices: int | None = Field(None, ge=0, le=64)
    """GPUs to run on; 0: the CPU. One where there is one, unless given."""

    def task(self) -> Task:
        """The task, with the names that the client uses. Raises InvalidRequest, whose `param` is `parameters.NAME`."""
        fields = params_of(TASKS[self.type]).model_fields
        for name in sorted(self.parameters.keys() & fields.keys()):
            if reason := closed_to_api(fields[name]):
                raise _refused(name, f" cannot be chosen: {reason}")
        task = parse(self.type, self.parameters)
        _check(task)
        return task


def parse(type: str, parameters: Mapping[str, Any]) -> Task:
    try:
        return TASK.validate_python({"task": type, "params": dict(parameters)})
    except ValidationError as error:
        # pydantic's places begin with the branch of the union, and with the field `params`
        details = [{**one, "loc": ("parameters", *one["loc"][2:])} for one in error.errors(include_url=False)]
        raise to_invalid_request(details, {"parameters": parameters}) from None


def _check(task: Task) -> None:
    for name, said in facts(type(task.params)):
        if reason := outside_choices(said, getattr(task.params, name)):
            raise _refused(name, f": {reason}")
    for name, reason in refusals(task):
        raise _refused(name, f": {reason}")
    for name in task.missing():
        where = f"parameters.{name}"
        raise InvalidRequest(f"Missing required parameter: {where!r}.", param=where, code=MISSING)
    for name, said in facts(type(task.params)):
        if said.processes:
            check_at_most(name, getattr(task.params, name), os.cpu_count() or 1)


def outside_choices(said: About, value: Any) -> str | None:
    """Why jobs of the API may not choose `value`; None where they may."""
    if not said.api_choices:  # the others may be of any type, also one that no set holds
        return None
    others = set(value if isinstance(value, tuple) else (value,)) - {*said.api_choices, None}
    if not others:
        return None
    return f"{min(others)!r} is not supported here; choose {' or '.join(said.api_choices)}"


def check_at_most(name: str, value: int, most: int) -> None:
    """Raises InvalidRequest."""
    if value > most:
        raise InvalidRequest(f"parameters.{name} is {value}, and here at most {most}.", param=f"parameters.{name}")


def _refused(name: str, reason: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"parameters.{name}{reason}.", param=f"parameters.{name}")
