"""Errors become answers here, and only here: in the one shape of the API that was asked, whatever went wrong."""

import logging
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import Scope

from engines.errors import (
    Conflict,
    EngineUnavailable,
    InvalidRequest,
    NotFound,
    QueueFull,
    QuotaExceeded,
    RateLimited,
    StorageFull,
    StoreUnavailable,
    TuneserveError,
)
from server.deps import find_part
from server.http.error_shapes import OPENAI, ErrorShape, Failure, shape_of
from server.http.settings import HttpSettings
from server.http.validation import to_invalid_request

logger = logging.getLogger(__name__)


class InvalidApiKey(TuneserveError):
    """The request brings no key, or one that is not ours."""

    code = "invalid_api_key"


class InsufficientPermissions(TuneserveError):
    """The key is ours, but lacks the role that the path needs."""

    code = "insufficient_permissions"


class ForeignOrigin(TuneserveError):
    """A browser sent the request for a page of an origin that `allowed_origins` does not name."""

    code = "origin_not_allowed"


class UnknownHost(TuneserveError):
    """The request is for a host that `allowed_hosts` does not name."""

    code = "host_not_allowed"


class BodyTooLarge(TuneserveError):
    """The request's body exceeds `max_body_size`."""

    code = "request_too_large"


class InvalidHttp(InvalidRequest):
    """What came is no request of HTTP/1.1, or one that two servers may read in two ways."""

    code = "invalid_http"


class RequestLineTooLong(TuneserveError):
    """The request's URL is too long."""

    code = "request_line_too_long"


class HeadersTooLarge(TuneserveError):
    """The request's headers are too large, or too many."""

    code = "request_headers_too_large"


class RequestTimeout(TuneserveError):
    """The request comes too slowly."""

    code = "request_timeout"


class SlowReader(TuneserveError):
    """The client does not read its answer."""

    code = "slow_reader"


class TooManyConnections(TuneserveError):
    """More connections are open than `max_connections`. Come back after `retry_after` seconds."""

    code = "too_many_connections"
    retry_after: int = 1


STATUS: dict[type[TuneserveError], int] = {
    InvalidRequest: 400,
    InvalidApiKey: 401,
    InsufficientPermissions: 403,
    ForeignOrigin: 403,
    UnknownHost: 403,
    NotFound: 404,
    RequestTimeout: 408,
    SlowReader: 408,
    Conflict: 409,
    BodyTooLarge: 413,
    RequestLineTooLong: 414,
    QueueFull: 429,
    RateLimited: 429,
    QuotaExceeded: 429,
    HeadersTooLarge: 431,
    EngineUnavailable: 503,
    TooManyConnections: 503,
    StoreUnavailable: 503,
    StorageFull: 507,
}
"""Error classes that are answered with their own message. All others are our fault: 500, and the message stays here."""

OVERLOADED = (QueueFull, EngineUnavailable, StoreUnavailable, TooManyConnections)
"""Error classes that say when to come back, whoever asks."""

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for an answer nobody waits for; it shows in the access log only."""


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(TuneserveError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


def error_response(error: Exception, scope: Scope) -> Response:
    """The answer that tells `error` to who sent the request; `scope` may hold no more of it than was understood."""
    headers = {}
    if isinstance(error, (*OVERLOADED, RateLimited)):
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, InvalidApiKey):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, BodyTooLarge | StorageFull):
        headers["connection"] = "close"  # the rest of the body must not be taken for the next request
    return _respond(_failure(error, _request_id(scope)), scope, headers)


def error_body(error: Exception, request_id: str, shape: ErrorShape = OPENAI) -> dict[str, Any]:
    """The error object, for a stream or a line of a batch. An error that is our fault is logged, not shown."""
    return shape.body(_failure(error, request_id), request_id)


def _failure(error: Exception, request_id: str) -> Failure:
    status = error_status(error)
    if not isinstance(error, TuneserveError) or status == 500:
        logger.error("Request %s failed: %s", request_id, error, exc_info=error)
        message = f"The server failed to answer this request. Its log has the details under {request_id}."
        return Failure(status=status, message=message, code="internal_error")
    overloaded = isinstance(error, OVERLOADED)
    return Failure(status=status, message=error.message, param=error.param, code=error.code, overloaded=overloaded)


def error_status(error: Exception) -> int:
    return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)


def _request_id(scope: Scope) -> str:
    return str(scope.get("state", {}).get("request_id", "-"))


def _respond(failure: Failure, scope: Scope, headers: Mapping[str, str]) -> Response:
    shape = shape_of(scope)
    body = orjson.dumps(shape.body(failure, _request_id(scope)))
    return Response(body, shape.status(failure), headers, media_type="application/json")


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):  # of the path or the query: bodies are parsed in `server.http.body`
        errors = [each | {"loc": each["loc"][1:]} for each in error.errors()]  # without "path" and "query"
        error = to_invalid_request(errors, None)
    find_part(request, HttpSettings).on_refusal(error)
    return error_response(error, request.scope)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, no such method."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:100]}"
    told = {404: (f"There is no {where}.", "not_found"), 405: (f"{where} is not allowed.", "method_not_allowed")}
    message, code = told.get(error.status_code, (str(error.detail), None))
    failure = Failure(status=error.status_code, message=message, code=code)
    headers = {"allow": _allowed(request)} if error.status_code == 405 else error.headers
    return _respond(failure, request.scope, headers or {})


def _allowed(request: Request) -> str:
    """The methods of all routes that have this path: Starlette tells those of the first. HEAD goes where GET does."""
    having = (each for each in request.app.routes if each.matches(request.scope)[0] is not Match.NONE)
    methods = {method for each in having if isinstance(each, Route) for method in each.methods or ()}
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
