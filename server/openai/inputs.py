"""The field that holds one text or many, as strings or as token ids: OpenAI's `input` and `prompt`."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from server.http.body import Items
from server.http.field_limits import MAX_PROMPTS, MAX_TOKENS, Text
from server.http.integers import as_integer

Ids = Annotated[Items[int], Field(min_length=1, max_length=MAX_TOKENS)]
Input = Text | Ids
"""One text: as it is, or as token ids."""


def _listed(value: Any) -> list[Input]:
    """The four forms as one: a list of inputs."""
    value = _with_integers(value)
    if isinstance(value, str) or _is_ids(value):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("Input should be a string, a list of strings, a list of token ids, or a list of such lists")
    if len(value) > MAX_PROMPTS and type(value[0]) is not int:
        raise ValueError(f"A list should have at most {MAX_PROMPTS} inputs, this one has {len(value)}")
    odd = _first_odd(value)
    if odd is not None:
        raise ValueError(f"A list should hold strings, or token ids, or lists of token ids: item {odd} does not fit")
    return value


def _with_integers(value: Any) -> Any:
    """Token ids that are written as 2.0, as ids."""
    if not isinstance(value, list) or not value or not isinstance(value[0], float | list):
        return value
    return [_with_integers(item) if isinstance(item, list) else as_integer(item) for item in value]


def _first_odd(items: list[Any]) -> int | None:
    """The position of the first item that is no input, or not one of the first's kind."""
    kind = _kind(items[0])
    return next((position for position, item in enumerate(items) if kind is None or _kind(item) is not kind), None)


def _kind(item: object) -> type | None:
    return type(item) if type(item) in (str, int) or _is_ids(item) else None


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
IdLists = Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
Inputs = Annotated[Items[Input], BeforeValidator(_listed, json_schema_input_type=Text | Texts | Ids | IdLists)]
