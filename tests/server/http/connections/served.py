"""Connections to our protocol, around an app of a test, in the test's own loop."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from server.http.connections.protocol import LimitedProtocol, Limits
from server.http.connections.room import Connections
from tests.until import PATIENCE


@dataclass(kw_only=True)
class Served:
    port: int
    connections: Connections
    refused: list[str]
    """Codes of the errors that ended connections."""

    async def connect(self) -> "Wire":
        return Wire(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 26))

    async def told(self, *pieces: bytes) -> "Answer":
        """The answer to these bytes, on a connection of their own."""
        wire = await self.connect()
        for piece in pieces:
            wire.send(piece)
        return await wire.answer()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        error = json.loads(self.body)["error"]
        assert error.keys() == {"message", "type", "param", "code"} and error["message"]
        return error["code"]


class Wire:
    """What goes over one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> Answer:
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:-2])
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(head[0].split()[1]), headers, body)

    async def rest(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def stop_reading(self) -> None:
        transport: Any = self.writer.transport
        transport.pause_reading()

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def served(
    app: ASGIApp, *, most: int = 100, keep_alive: float = 60, root_path: str = "", **limits: Any
) -> AsyncIterator[Served]:
    """The protocol with `limits` on a port, until the block ends."""
    config = uvicorn.Config(app, lifespan="off", log_config=None, ws="none")
    config.load()
    config.timeout_keep_alive = keep_alive  # type: ignore[assignment]
    refused: list[str] = []
    connections = Connections(most, lambda error: refused.append(error.code or ""), root_path=root_path)
    here = Served(port=0, connections=connections, refused=refused)
    protocol = partial(
        LimitedProtocol,
        connections=here.connections,
        limits=Limits(**limits),
        config=config,
        server_state=ServerState(),
        app_state={},
    )
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    here.port = server.sockets[0].getsockname()[1]
    try:
        yield here
    finally:
        server.close()
