"""2.0 where a body asks for an integer: JSON has one kind of number, and clients in Lua and others write integers so.

Models are strict and take no float for an integer. What they refuse for that alone is read once more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

MOST = 2**53
"""Above it, one float stands for several integers."""


def as_integer(value: Any) -> Any:
    """`2` for `2.0`; what is no whole number stays as it is."""
    if type(value) is float and value.is_integer() and abs(value) <= MOST:
        return int(value)
    return value


def with_integers(body: Any, errors: Sequence[Mapping[str, Any]]) -> Any:
    """`body` with integers where pydantic's `errors` miss them and find whole numbers; itself where there are none."""
    for error in errors:
        if error["type"] == "int_type" and as_integer(error["input"]) is not error["input"]:
            body = _replaced(body, error["loc"])
    return body


def _replaced(value: Any, place: Sequence[int | str]) -> Any:
    if not place:
        return as_integer(value)
    step, rest = place[0], place[1:]
    if isinstance(value, dict) and step in value:
        return {**value, step: _replaced(value[step], rest)}
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        if type(value[step]) is float:  # its neighbours are, too, and of a list one error is told
            return [as_integer(item) for item in value]
        return [*value[:step], _replaced(value[step], rest), *value[step + 1 :]]
    return _replaced(value, rest)  # a step that pydantic adds for the branch of a union
