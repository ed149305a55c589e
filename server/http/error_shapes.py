"""Errors in the shape of the API that a request speaks: OpenAI's, or Anthropic's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from server.http.paths import route_path

ANTHROPIC_PATH = "/v1/messages"
ANTHROPIC_HEADER = b"anthropic-version"
OVERLOADED = 529
"""Anthropic's status for a server that has too much to do, or is not there yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a client is told of an error, whatever the shape."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    overloaded: bool = False
    """The same request would be answered at another time."""


@dataclass(frozen=True, slots=True)
class ErrorShape:
    status: Callable[[Failure], int]
    body: Callable[[Failure, str], dict[str, Any]]
    """The error object. The text is the request's id."""


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a request is for Anthropic's API, or comes from one of its clients."""
    path = route_path(scope) if "path" in scope else ""
    if path == ANTHROPIC_PATH or path.startswith(f"{ANTHROPIC_PATH}/"):
        return True
    return any(name == ANTHROPIC_HEADER for name, _ in scope.get("headers", ()))


def shape_of(scope: Scope) -> ErrorShape:
    return ANTHROPIC if speaks_anthropic(scope) else OPENAI


# --- OpenAI's


def _openai_status(failure: Failure) -> int:
    return failure.status


def _openai_body(failure: Failure, request_id: str) -> dict[str, Any]:
    status = failure.status
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": failure.message, "type": kind, "param": failure.param, "code": failure.code}}


OPENAI = ErrorShape(_openai_status, _openai_body)


# --- Anthropic's


TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    OVERLOADED: "overloaded_error",
}


def _anthropic_status(failure: Failure) -> int:
    return OVERLOADED if failure.overloaded else failure.status


def _anthropic_body(failure: Failure, request_id: str) -> dict[str, Any]:
    status = _anthropic_status(failure)
    kind = TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    error: dict[str, Any] = {"type": kind, "message": _with_param(failure)}
    if failure.code is not None:
        error["details"] = {"error_code": failure.code, "param": failure.param}
    return {"type": "error", "error": error, "request_id": request_id}


def _with_param(failure: Failure) -> str:
    """The message, which names the field: there is no other place for it."""
    param, message = failure.param, failure.message
    named = param is None or repr(param) in message or message.startswith(f"{param}:")
    return message if named else f"{param}: {message}"


ANTHROPIC = ErrorShape(_anthropic_status, _anthropic_body)
