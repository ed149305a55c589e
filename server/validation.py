"""Pydantic's errors in the words of OpenAI's: one exception with a message, the field's path and a code."""

from collections.abc import Mapping, Sequence
from typing import Any

from engines.errors import InvalidRequest

MAX_ERRORS = 3
MAX_VALUE = 60
"""Characters of a wrong value that a message quotes."""
CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}


def to_invalid_request(errors: Sequence[Mapping[str, Any]], body: Any) -> InvalidRequest:
    """One error of at most a few of pydantic's `errors`; the first gives `param` and `code`.

    Unknown fields come first: they explain a missing one that was misspelt.
    """
    ranked = sorted(errors, key=lambda error: error["type"] != "extra_forbidden")
    told = list(dict.fromkeys(_tell(error, body) for error in ranked[:MAX_ERRORS]))
    more = len(errors) - MAX_ERRORS
    message = "; ".join(told) + (f"; and {more} more" if more > 0 else "") + "."
    return InvalidRequest(message, param=_path(ranked[0], body), code=CODES.get(ranked[0]["type"]))


def _tell(error: Mapping[str, Any], body: Any) -> str:
    path, kind = _path(error, body), error["type"]
    if kind == "extra_forbidden":
        return f"Unknown parameter: {path!r}"
    if kind == "missing":
        return f"Missing required parameter: {path!r}"
    reason = str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    where = "" if path is None else f"{path}: "
    return where + reason + _quote(error["input"])


def _quote(value: Any) -> str:
    """The wrong value, where a few characters show it."""
    if isinstance(value, Mapping | list | tuple):
        return ""
    text = repr(value[:MAX_VALUE] if isinstance(value, str) else value)
    return f" (got {text[:MAX_VALUE]})"


def _path(error: Mapping[str, Any], body: Any) -> str | None:
    """`messages[0].content` for ("messages", 0, "user", "content"): steps that pydantic adds for the branch of a union
    lead nowhere in the body and are left out."""
    loc = error["loc"]
    path, value = "", body
    for step in loc[:-1] if error["type"] == "missing" else loc:
        if body is None or _has(value, step):
            path += f"[{step}]" if isinstance(step, int) else f".{step}"
            value = None if body is None else value[step]
    if error["type"] == "missing":
        path += f".{loc[-1]}"
    return path.removeprefix(".")[:200] or None


def _has(value: Any, step: int | str) -> bool:
    if isinstance(value, Mapping):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and step < len(value)
