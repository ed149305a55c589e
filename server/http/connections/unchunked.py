"""Answers to clients that speak HTTP/1.0, which has no chunks: a body of unknown length ends with its connection
(RFC 9112, 6.3), and nobody waits for "100 Continue" (RFC 9110, 10.1.1)."""

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def unchunked(app: ASGIApp, cycle: RequestResponseCycle) -> Any:  # uvicorn has types of its own for an app
    """`app` for the request of this cycle, after whose answer uvicorn closes the connection."""
    cycle.waiting_for_100_continue = False

    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        endless = False

        async def send_plain(message: Message) -> None:
            nonlocal endless
            if message["type"] == "http.response.start":
                endless = all(name.lower() != b"content-length" for name, _ in message["headers"])
                cycle.chunked_encoding = False if endless else None
            elif endless:
                cycle.expected_content_length = len(message.get("body", b""))  # as long as it is
            await send(message)

        await app(scope, receive, send_plain)

    return plain
