"""The field that holds one text or many, as strings or as token ids: OpenAI's `input` and `prompt`."""

from typing import Annotated, Any

from pydantic import BeforeValidator

MAX_INPUTS = 2048

Input = str | list[int]
"""One text: as it is, or as token ids."""


def _listed(value: Any) -> list[Input]:
    """The four forms as one: a list of inputs."""
    if isinstance(value, str) or _is_ids(value):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("Input should be a string, a list of strings, a list of token ids, or a list of such lists")
    if len(value) > MAX_INPUTS:
        raise ValueError(f"A list should have at most {MAX_INPUTS} inputs, this one has {len(value)}")
    if all(isinstance(item, str) for item in value) or all(_is_ids(item) for item in value):
        return list(value)
    raise ValueError("All inputs of a list should be strings, or all of them lists of token ids")


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


Inputs = Annotated[
    list[Input],
    BeforeValidator(_listed, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
