"""Direct writes: pieces of an answer that go to their connection without a task that awaits it.

An extension of ASGI, whose `send` must be awaited: to wake a task up for every token of every stream, through all that
stands between it and the connection, takes longer than to write the token.
"""

from collections.abc import Callable

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

EXTENSION = "tuneserve.write"

Write = Callable[[bytes], bool]
"""Writes a piece of a body that has begun. False, and nothing is written, where the connection has to be awaited."""


def offer_direct_writes(cycle: RequestResponseCycle) -> None:
    """Let whoever answers the request find `direct_writer`."""

    def write(piece: bytes) -> bool:
        if cycle.flow.write_paused or cycle.disconnected or cycle.response_complete or not cycle.chunked_encoding:
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True

    cycle.scope["extensions"] = {EXTENSION: write}  # type: ignore[dict-item]  # typed for ASGI's own


def direct_writer(scope: Scope) -> Write | None:
    """None where the request did not come over a connection of ours."""
    write: Write | None = scope.get("extensions", {}).get(EXTENSION)
    return write
