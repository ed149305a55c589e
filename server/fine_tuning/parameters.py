"""The extra field `parameters` of a fine-tuning job: which of the command line's parameters a client may choose
here."""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from engines.errors import UnsupportedParameter
from engines.params.about import closed_to_fine_tuning, facts
from server.http.validation import to_invalid_request
from server.jobs.request import check_at_most, outside_choices
from training.methods.base import Method
from training.params.sft import SftParams

STRETCHED = "positions are stretched to that of the served model: leave it out"
SAVING_OFF = "without checkpoints a job could not go on after an interruption"


def check_parameters(
    given: Mapping[str, Any], method: Method[Any], *, max_model_len: int, stretched: bool = False
) -> SftParams:
    """`given`, parsed. Refuses what is no parameter, what a client may not choose, and sizes that would only fill the
    machine. `stretched`: whether the positions of the served model are stretched to its length (`rope_scaling`).

    Raises InvalidRequest, whose `param` is `parameters.NAME`. A parameter that is sound but has no effect is refused
    later, with the whole task.
    """
    fields, said = method.params.model_fields, dict(facts(method.params))
    for name in sorted(given.keys() & fields.keys()):
        if reason := closed_to_fine_tuning(fields[name]):
            raise _refused(name, reason)
    if stretched and "max_length" in given:
        raise _refused("max_length", STRETCHED)
    params = parse(given, method)
    if params.save_strategy == "no":
        raise _refused("save_strategy", SAVING_OFF)
    for name in given:
        if reason := outside_choices(said[name], getattr(params, name)):
            raise _refused(name, reason)
        limit = os.cpu_count() or 1 if said[name].processes else said[name].most
        if name == "max_length":
            limit = max_model_len
        if limit is not None and (value := getattr(params, name)) is not None:
            check_at_most(name, value, limit)
    return params


def parse(given: Mapping[str, Any], method: Method[Any]) -> SftParams:
    try:
        params: SftParams = method.params.model_validate({**given, **method.choice})
        return params
    except ValidationError as error:
        details = [{**one, "loc": ("parameters", *one["loc"])} for one in error.errors(include_url=False)]
        raise to_invalid_request(details, {"parameters": given}) from None


def _refused(name: str, reason: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"parameters.{name} cannot be chosen: {reason}.", param=f"parameters.{name}")
