"""What surrounds every request: its id, the access log, the count of those in flight, the last answer to a bug."""

import contextlib
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engines.errors import InvalidRequest, NotFound
from engines.logs import about
from server.deps import Parts
from server.http.error_shapes import speaks_anthropic
from server.http.errors import CLIENT_CLOSED_REQUEST, error_response
from server.http.ignored import HEADER, Ignored, IgnoredFields
from server.http.in_flight import InFlight
from server.http.keys.caller import ANYBODY
from server.http.paths import route_path

logger = logging.getLogger(__name__)
access = logging.getLogger("server.access")

PROBES = frozenset({"/health", "/ping", "/ready", "/metrics"})
"""Asked for every few seconds by machines: these would drown the others in the log."""

SANE_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


class RequestContext:
    """Outermost: gives the request an id and sees to it that exactly one answer goes out, whatever happens inside.

    `request.state.parts` are the server's; `request.state.answer_headers` makes headers of the answer, when it begins;
    what was added until then to `request.state.ignored`, names of fields without effect, is a header of it as well;
    `request.state.answered` is an ExitStack for what a request holds until its answer has ended, however it ended.
    """

    def __init__(self, app: ASGIApp, *, parts: Parts, in_flight: InFlight, verbose: bool) -> None:
        self._app = app
        self._parts = parts
        self._in_flight = in_flight
        self._verbose = verbose

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = _request_id(Headers(scope=scope))
        answered = contextlib.ExitStack()
        scope.setdefault("state", {}).update(
            request_id=request_id, answered=answered, parts=self._parts, answer_headers=tuple, ignored=Ignored()
        )
        status: int | None = None
        began = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if speaks_anthropic(scope):
                    headers["request-id"] = request_id
                for name, value in scope["state"]["answer_headers"]():
                    headers[name] = value
                if ignored := scope["state"]["ignored"]:
                    headers[HEADER] = ignored.to_header()
                    self._parts[IgnoredFields].tell(scope["route"].path_format, ignored)
            await send(message)

        self._in_flight.enter()
        try:
            with about(request_id):
                try:
                    _check_text(scope)
                    await self._app(scope, receive, send_with_id)
                except Exception as error:
                    if status is not None:
                        raise  # the answer is half out: the server below closes the connection
                    await error_response(error, scope)(scope, receive, send_with_id)
        finally:
            answered.close()
            self._in_flight.leave()
            if self._verbose and route_path(scope) not in PROBES:
                _log(scope, status or CLIENT_CLOSED_REQUEST, time.perf_counter() - began, request_id)


def _check_text(scope: Scope) -> None:
    """No name has a NUL in it, and Postgres takes none. Raises NotFound, InvalidRequest."""
    if "\0" in scope["path"]:
        raise NotFound("No path has a NUL character in it.")
    if b"%00" in scope["query_string"]:
        raise InvalidRequest("The request's query has a NUL character in it.")


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if SANE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


def _log(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    client = scope["client"][0] if scope["client"] else "-"
    path = ascii(scope["path"])[1:-1][:200]  # a line of log stays a line
    caller = scope["state"].get("caller", ANYBODY).name or "-"
    access.info("%s %s %s %s %d %.3fs %s", client, caller, scope["method"], path, status, seconds, request_id)
