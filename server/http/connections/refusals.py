"""Answers that a connection gives by itself: to what is no request, and beyond the limit of connections."""

from collections.abc import Callable
from http.client import responses

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engines.errors import TuneserveError
from server.http.errors import TooManyConnections, error_response
from server.http.middleware import PROBES
from server.http.paths import route_path


def raw_answer(error: TuneserveError, scope: Scope) -> bytes:
    """The answer as bytes, for where there is no whole request to answer; `scope` holds what is known of it."""
    response = error_response(error, scope)
    response.headers["connection"] = "close"
    phrase = responses.get(response.status_code, "")
    lines = [f"HTTP/1.1 {response.status_code} {phrase}".encode()]
    lines += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


def only_probes(app: ASGIApp, root_path: str, on_refusal: Callable[[TuneserveError], None]) -> ASGIApp:
    """The app of a connection beyond the limit: it gets one answer, which is an error for all paths but the probes."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        scope = {**scope, "root_path": root_path}
        if route_path(scope) in PROBES:
            return await app(scope, receive, send_and_close)
        error = TooManyConnections("The server has too many connections.")
        on_refusal(error)
        await error_response(error, scope)(scope, receive, send_and_close)

    return answer
