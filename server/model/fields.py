"""Checks on the parts of a request that are free-form JSON."""

import re
from collections.abc import Collection
from typing import Any

from engines.errors import InvalidRequest

MAX_NAME = 128
"""Anthropic's; OpenAI has 64."""
NAME = re.compile(rf"[a-zA-Z0-9_-]{{1,{MAX_NAME}}}")


def as_object(value: Any, known: Collection[str], param: str) -> dict[str, Any]:
    """Return `value` as an object, after checking that it has only known fields."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"Expected an object, got {shown(value)}", param=param)
    for key in value:
        if key not in known:
            name = f"{param}.{key[:80]}"
            raise InvalidRequest(f"Unknown parameter: '{name}'", param=name, code="unknown_parameter")
    return value


def known_of(value: Any, known: Collection[str], param: str) -> dict[str, Any]:
    """Return the fields of an object that are known and not null, in their order: others have no effect."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"Expected an object, got {shown(value)}", param=param)
    return {key: each for key, each in value.items() if key in known and each is not None}


def as_string(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"Expected a string, got {shown(value)}", param=param)
    return value


def as_name(value: Any, param: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise InvalidRequest(
            f"Expected 1 to {MAX_NAME} of the characters a-z A-Z 0-9 _ -, got {shown(value)}", param=param
        )
    return value


def check_description(value: Any, param: str) -> None:
    if value is not None:
        as_string(value, param)


def as_flag(value: Any, param: str) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise InvalidRequest(f"Expected true or false, got {shown(value)}", param=param)


def shown(value: Any) -> str:
    """A value as an error message quotes it: cut short, whatever its size and depth."""
    match value:
        case str():
            return repr(value if len(value) <= 80 else value[:80] + "...")
        case dict():
            return "an object"
        case list():
            return "a list"
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case _:
            return f"{value!r:.80}"
