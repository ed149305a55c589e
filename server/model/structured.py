"""Turns `response_format` and `structured_outputs` of a request into the constraint that the engine enforces."""

import json
from collections.abc import Callable
from typing import Any

from engines.errors import InvalidRequest
from engines.types import Structured
from server.model.constraint import Constraint
from server.model.fields import as_flag, as_name, as_object, as_string, check_description, shown

FORMAT_TYPES = "'text', 'json_object' or 'json_schema'"
OUTPUT_KINDS = "'json', 'json_object', 'regex', 'choice' or 'grammar'"
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "disable_any_whitespace": (None, False),
    "disable_additional_properties": (None, False, True),  # objects are closed anyway
    "whitespace_pattern": (None,),
    "structural_tag": (None,),
}
"""More fields of vLLM's `structured_outputs`, and the values with which they ask for nothing."""


def read_constraint(response_format: Any, structured_outputs: Any = None) -> Constraint | None:
    """Check the two fields, given as parsed JSON (None where the request has none), and return what they ask for.

    Raises InvalidRequest for what is malformed, naming the field.
    """
    constraint = _of_response_format(response_format) if response_format is not None else None
    if structured_outputs is None:
        return constraint
    if constraint is not None:
        message = "'structured_outputs' and 'response_format' cannot both constrain the output"
        raise InvalidRequest(message, param="structured_outputs")
    return _of_structured_outputs(structured_outputs)


def _of_response_format(value: Any) -> Constraint | None:
    kind = as_object(value, {"type", "json_schema", "schema"}, "response_format").get("type")
    if kind == "json_schema":
        as_object(value, {"type", "json_schema"}, "response_format")
        return _of_json_schema(value.get("json_schema"), "response_format.json_schema")
    as_object(value, {"type", "schema"} if kind == "json_object" else {"type"}, "response_format")
    if kind == "text":
        return None
    if kind == "json_object":
        if value.get("schema") is not None:  # as llama.cpp has it, and clients that were made for it
            structured = _of_schema(value["schema"], "response_format.schema", strict=False)
            return Constraint(structured, "response_format.schema")
        return Constraint(Structured(kind="json_object", value=""), "response_format")
    raise InvalidRequest(f"Expected {FORMAT_TYPES}, got {shown(kind)}", param="response_format.type")


def _of_json_schema(value: Any, param: str) -> Constraint:
    as_object(value, {"name", "description", "schema", "strict"}, param)
    as_name(value.get("name"), f"{param}.name")
    check_description(value.get("description"), f"{param}.description")
    as_flag(value.get("strict"), f"{param}.strict")
    structured = _of_schema(value.get("schema"), f"{param}.schema", strict=value.get("strict") is True)
    return Constraint(structured, f"{param}.schema")


def _of_schema(schema: Any, param: str, *, strict: bool) -> Structured:
    if not isinstance(schema, dict):
        raise InvalidRequest(f"Expected a JSON schema, got {shown(schema)}", param=param)
    return Structured(kind="json_schema", value=_text(schema, param), lenient=not strict)


def _of_structured_outputs(value: Any) -> Constraint:
    as_object(value, READERS.keys() | NEUTRAL.keys(), "structured_outputs")
    for name, neutral in NEUTRAL.items():
        if not any(value.get(name) is one for one in neutral):
            raise InvalidRequest(f"{name!r} is not supported", param=f"structured_outputs.{name}")
    given = [kind for kind in READERS if value.get(kind) is not None]
    if len(given) != 1:
        raise InvalidRequest(f"Expected just one of {OUTPUT_KINDS}, got {given}", param="structured_outputs")
    param = f"structured_outputs.{given[0]}"
    return Constraint(READERS[given[0]](value[given[0]], param), param)


def _of_json(value: Any, param: str) -> Structured:
    return Structured(kind="json_schema", value=value if isinstance(value, str) else _text(value, param))


def _of_json_object(value: Any, param: str) -> Structured:
    if value is not True:
        raise InvalidRequest(f"Expected true, got {shown(value)}", param=param)
    return Structured(kind="json_object", value="")


def _of_regex(value: Any, param: str) -> Structured:
    return Structured(kind="regex", value=as_string(value, param))


def _of_choice(value: Any, param: str) -> Structured:
    if not isinstance(value, list) or not all(isinstance(choice, str) for choice in value):
        raise InvalidRequest("Expected a list of strings", param=param)
    return Structured(kind="choice", value=_text(value, param))


def _of_grammar(value: Any, param: str) -> Structured:
    return Structured(kind="grammar", value=as_string(value, param))


READERS: dict[str, Callable[[Any, str], Structured]] = {
    "json": _of_json,
    "json_object": _of_json_object,
    "regex": _of_regex,
    "choice": _of_choice,
    "grammar": _of_grammar,
}


def _text(value: Any, param: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        raise InvalidRequest("Expected JSON without NaN, infinity or hundreds of levels", param=param) from None
