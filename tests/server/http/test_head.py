"""HEAD over a connection: an answer that ends with its headers, however long the body of GET would be."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server.http.head import Head
from tests.server.http.connections.served import served
from tests.until import async_until


class App:
    def __init__(self) -> None:
        self.ended = False
        routes = [Route("/text", self._text), Route("/silent", self._silent), Route("/file", _File(self))]
        self.app = Head(Starlette(routes=routes))

    async def _text(self, request: Request) -> Response:
        return PlainTextResponse(f"asked by {request.method}")

    async def _silent(self, request: Request) -> Response:
        return StreamingResponse(self._nothing())

    async def _nothing(self) -> AsyncIterator[bytes]:
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            self.ended = True


class _File:
    """Without an end, and deaf to clients that go, as what is read from a disk is."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"piece", "more_body": True})
                await asyncio.sleep(0)
        finally:
            self._app.ended = True


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_it_has_the_headers_of_get_and_nothing_behind_them(version: str) -> None:
    async with served(App().app) as here:
        texts = []
        for method in ("GET", "HEAD"):
            wire = await here.connect()
            wire.send(f"{method} /text HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            texts.append(await wire.rest())
    whole, head = texts
    assert whole == head + b"asked by GET" and b"content-length: 12" in head


@pytest.mark.parametrize("path", [b"/silent", b"/file"])
async def test_a_body_without_end_is_ended_and_the_next_request_is_answered(path: bytes) -> None:
    app = App()
    async with served(app.app) as here:
        wire = await here.connect()
        wire.send(b"HEAD " + path + b" HTTP/1.1\r\nHost: a\r\n\r\nGET /text HTTP/1.1\r\nHost: a\r\n\r\n")
        head = (await wire.reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200") and b"content-length" not in head
        assert (await wire.answer()).body == b"asked by GET"
        await async_until(lambda: app.ended)
