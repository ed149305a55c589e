"""Streams: refusals before them, errors in them, keep-alive, and clients that go away."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from starlette.types import Message

from engines.echo import EchoEngine, echo_tokenizer
from engines.errors import EngineFailure, QueueFull
from engines.params.deploy import DeployParams
from server.app import create_app
from server.http.connections.direct import EXTENSION, Write
from server.http.sse import stream_events, until_disconnect
from server.parts import make_parts


class Source:
    """Events to stream, one for each `put`; an exception is raised; None ends them."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = asyncio.Event()

    def put(self, *events: Any) -> None:
        for event in events:
            self.queue.put_nowait(event)

    async def send_all(self, send: Callable[[Any], None]) -> None:
        async with aclosing(self.events()) as events:
            async for event in events:
                send(event)

    async def events(self) -> AsyncGenerator[Any, None]:
        try:
            while (event := await self.queue.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.closed.set()


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def app(source: Source) -> FastAPI:
    app = create_app(make_parts(EchoEngine(), echo_tokenizer(), DeployParams(model="echo")))

    @app.get("/stream")
    async def stream(request: Request, keep_alive: float = 60.0) -> Response:
        return await stream_events(request, source.send_all, keep_alive=keep_alive)

    @app.get("/wait")
    async def wait(request: Request) -> Response:
        return await until_disconnect(request, source.events().__anext__())

    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


async def test_events_are_framed_and_end_with_done(client: httpx.AsyncClient, source: Source) -> None:
    source.put({"a": 1}, {"b": "é"}, None)
    reply = await client.get("/stream")
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.text == 'data: {"a":1}\n\ndata: {"b":"é"}\n\ndata: [DONE]\n\n'


async def test_an_error_before_the_first_event_is_an_answer_of_its_own(
    client: httpx.AsyncClient, source: Source
) -> None:
    source.put(QueueFull("full"))
    reply = await client.get("/stream")
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
    assert reply.json()["error"]["code"] == "rate_limit_exceeded"
    assert source.closed.is_set()


async def test_a_later_error_goes_into_the_stream(client: httpx.AsyncClient, source: Source) -> None:
    source.put({"a": 1}, EngineFailure("secret /path"))
    reply = await client.get("/stream")
    assert reply.status_code == 200
    first, error, done = reply.text.strip().split("\n\n")
    assert first == 'data: {"a":1}'
    assert '"type":"server_error"' in error and "secret" not in error
    assert done == "data: [DONE]"


async def test_a_bug_in_the_events_is_told_without_its_details(client: httpx.AsyncClient, source: Source) -> None:
    source.put({"a": 1}, KeyError("secret"))
    text = (await client.get("/stream")).text
    assert '"code":"internal_error"' in text and "secret" not in text and text.endswith("data: [DONE]\n\n")


class Client:
    """An ASGI client that reads piece by piece, and goes away when told to."""

    def __init__(self, app: FastAPI, path: str, query: bytes = b"", *, write: Write | None = None) -> None:
        """`write`: its connection takes direct writes."""
        self.gone = asyncio.Event()
        self.sent: list[Message] = []
        self.started = asyncio.Event()
        self.pieces: asyncio.Queue[str] = asyncio.Queue()
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": query,
            "headers": [],
            "client": None,
        }
        scope["extensions"] = {} if write is None else {EXTENSION: write}
        self.task = asyncio.create_task(app(scope, self.receive, self.send))

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message.get("body"):
            self.started.set()
            self.pieces.put_nowait(message["body"].decode())


async def test_comments_keep_a_silent_stream_alive_before_and_after_the_first_event(
    app: FastAPI, source: Source
) -> None:
    client = Client(app, "/stream", query=b"keep_alive=0.01")
    assert await client.pieces.get() == ": keep-alive\n\n"
    source.put({"a": 1})
    while (piece := await client.pieces.get()) == ": keep-alive\n\n":
        pass
    assert piece == 'data: {"a":1}\n\n'
    assert await client.pieces.get() == ": keep-alive\n\n"
    source.put(QueueFull("too late for a status"))
    await client.task
    text = "".join(client.pieces.get_nowait() for _ in range(client.pieces.qsize()))
    assert '"code":"rate_limit_exceeded"' in text and text.endswith("data: [DONE]\n\n")


async def test_what_comes_together_is_written_together_and_directly_once_the_stream_has_begun(
    app: FastAPI, source: Source
) -> None:
    written: asyncio.Queue[bytes] = asyncio.Queue()

    def write(piece: bytes) -> bool:
        written.put_nowait(piece)
        return True

    client = Client(app, "/stream", write=write)
    source.put({"a": 1})
    assert await client.pieces.get() == 'data: {"a":1}\n\n'
    source.put({"b": 1}, {"c": 1})
    assert await written.get() == b'data: {"b":1}\n\ndata: {"c":1}\n\n'
    source.put({"d": 1}, None)
    await client.task
    assert (client.pieces.get_nowait(), written.qsize()) == ('data: {"d":1}\n\ndata: [DONE]\n\n', 0)


async def test_what_cannot_be_written_directly_waits_for_the_connection_in_order(app: FastAPI, source: Source) -> None:
    client = Client(app, "/stream", write=lambda piece: False)
    for number in range(3):
        source.put({"a": number})
        assert await client.pieces.get() == f'data: {{"a":{number}}}\n\n'
    client.gone.set()
    await client.task


async def test_a_stream_that_is_written_directly_is_not_silent(app: FastAPI, source: Source) -> None:
    client = Client(app, "/stream", query=b"keep_alive=0.01", write=lambda piece: True)
    source.put({"a": 1})
    while await client.pieces.get() == ": keep-alive\n\n":
        pass
    source.put({"b": 1})
    assert await client.pieces.get() == ": keep-alive\n\n"
    client.gone.set()
    await client.task


async def test_a_client_that_goes_away_closes_the_events(app: FastAPI, source: Source) -> None:
    client = Client(app, "/stream")
    source.put({"a": 1})
    await client.started.wait()
    client.gone.set()
    await client.task
    assert source.closed.is_set()


async def test_a_client_that_goes_away_before_the_first_event_closes_the_events(app: FastAPI, source: Source) -> None:
    client = Client(app, "/stream")
    client.gone.set()
    await client.task
    assert source.closed.is_set()
    assert [message.get("status") for message in client.sent] == [499, None]


async def test_a_client_that_goes_away_ends_work_that_does_not_stream(app: FastAPI, source: Source) -> None:
    client = Client(app, "/wait")
    client.gone.set()
    await client.task
    assert source.closed.is_set()
    assert client.sent[0]["status"] == 499
