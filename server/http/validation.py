"""Pydantic's errors in the words of OpenAI's: one exception with a message, the field's path and a code."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from engines.errors import InvalidRequest

MAX_ERRORS = 3
MAX_PATH = 200
MAX_VALUE = 60
"""Characters of a wrong value that a message quotes."""
PathError = tuple[str, Mapping[str, Any]]
"""An error of pydantic's with the path of its field; "" for the whole body."""
MISSING, UNKNOWN = "missing_required_parameter", "unknown_parameter"
CODES = {"missing": MISSING, "extra_forbidden": UNKNOWN}
OBJECT = "Input should be an object"
WORDS = {
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), OBJECT),
    "union_tag_not_found": f"{OBJECT} that says its type",
}
"""Kinds of errors that pydantic tells in words of Python."""


def to_invalid_request(
    errors: Sequence[Mapping[str, Any]], body: Any, *, ignored: Sequence[str] = ()
) -> InvalidRequest:
    """One error of at most a few of pydantic's `errors`; the first gives `param` and `code`.

    It tells one of the unknown fields that are `ignored`: that may be the missing one, misspelt.
    """
    told = _worth_telling([(_misplaced(error) or _path(error, body), error) for error in errors])
    messages = list(dict.fromkeys(_tell(path, error) for path, error in told[:MAX_ERRORS]))
    more = f"; and {len(told) - MAX_ERRORS} more" if len(told) > MAX_ERRORS else ""
    misspelt = f"; the unknown parameter {ignored[0][:MAX_PATH]!r} is ignored" if ignored else ""
    path, first = told[0]
    return InvalidRequest(
        "; ".join(messages) + more + misspelt + ".", param=path or None, code=CODES.get(first["type"])
    )


def misplaced(param: str, reason: str) -> PydanticCustomError:
    """For a validator of a whole body: what is wrong with one field beside the others."""
    return PydanticCustomError("misplaced", "{reason}", {"param": param, "reason": reason})


def unknown_parameter(name: str) -> InvalidRequest:
    name = name[:MAX_PATH]
    return InvalidRequest(f"Unknown parameter: {name!r}.", param=name, code=UNKNOWN)


def _misplaced(error: Mapping[str, Any]) -> str | None:
    return error["ctx"]["param"] if error["type"] == "misplaced" else None


def _worth_telling(errors: list[PathError]) -> list[PathError]:
    """Without those of a union's other branches, which stopped short of where one went on.

    Unknown fields come first: they explain a missing one that was misspelt.
    """
    reached = {path[:end] for path, _ in errors for end in _ends_of_steps(path)}
    kept = [(path, error) for path, error in errors if path not in reached]
    return sorted(kept, key=lambda path_error: path_error[1]["type"] != "extra_forbidden")


def _ends_of_steps(path: str) -> list[int]:
    """Where each step of the path but the last ends: `messages`, `messages[0]` for `messages[0].content`."""
    return [position for position, character in enumerate(path) if character in ".[" and position]


def _tell(path: str, error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return f"Unknown parameter: {path!r}"
    if error["type"] == "missing":
        return f"Missing required parameter: {path!r}"
    reason = WORDS.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    return (f"{path}: " if path else "") + reason + _quote(error["input"])


def _quote(value: Any) -> str:
    """The wrong value, where a few characters show it."""
    if isinstance(value, Mapping | list | tuple):
        return ""
    text = repr(value[:MAX_VALUE] if isinstance(value, str) else value)
    return f" (got {text[:MAX_VALUE]})"


def _path(error: Mapping[str, Any], body: Any) -> str:
    """`messages[0].content` for ("messages", 0, "user", "content"): steps that pydantic adds for the branch of a union
    lead nowhere in the body and are left out."""
    *steps, last = error["loc"] or ("",)
    path, value = "", body
    for step in steps:
        if body is None or _has(value, step):
            path += _step(step)
            value = None if body is None else value[step]
    if body is None or error["type"] == "missing" or _has(value, last):
        path += _step(last)
    return path.removeprefix(".")[:MAX_PATH]


def _step(step: int | str) -> str:
    return f"[{step}]" if isinstance(step, int) else f".{step}"


def _has(value: Any, step: int | str) -> bool:
    if isinstance(value, Mapping):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and step < len(value)
