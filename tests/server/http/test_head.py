"""HEAD over a connection: an answer that ends with its headers, however long the body of GET would be."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from server.http.head import Head
from tests.server.http.connections.served import served
from tests.until import async_until


class App:
    def __init__(self) -> None:
        self.told = 0
        self.ended = False
        routes = [Route("/text", self._text), Route("/endless", self._endless)]
        self.app = Head(Starlette(routes=routes))

    async def _text(self, request: Request) -> Response:
        return PlainTextResponse(f"asked by {request.method}")

    async def _endless(self, request: Request) -> Response:
        return StreamingResponse(self._pieces())

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self.told += 1
                yield b"piece"
                await asyncio.sleep(0.001)
        finally:
            self.ended = True


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


async def test_a_stream_without_end_is_ended_and_the_next_request_is_answered() -> None:
    app = App()
    async with served(app.app) as here:
        wire = await here.connect()
        wire.send(b"HEAD /endless HTTP/1.1\r\nHost: a\r\n\r\nGET /text HTTP/1.1\r\nHost: a\r\n\r\n")
        head = (await wire.reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200") and b"content-length" not in head
        assert (await wire.answer()).body == b"asked by GET"
        await async_until(lambda: app.ended)
        told = app.told
        await asyncio.sleep(0.02)
        assert app.told == told
