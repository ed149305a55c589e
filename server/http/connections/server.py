"""uvicorn's server: it serves our protocol, and ends in order."""

import asyncio
import contextlib
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from server.http.connections.handshakes import TlsListener
from server.http.connections.protocol import LimitedProtocol, Limits
from server.http.connections.room import Connections

KEEP_ALIVE_SECONDS = 75
"""Idle timeout of a connection. It is longer than those of clients, so that they close it, and not we
just as a request comes."""
CLOSING_SECONDS = 5
"""Seconds for connections to close, once every request has been answered."""
DATE_SECONDS = 1
"""Seconds between two looks at the clock, for the header `date`."""
AGAIN_SECONDS = 1
"""Seconds after which a second SIGINT counts: one that comes sooner is the first one, sent twice."""


class HttpServer(uvicorn.Server):
    def __init__(
        self,
        app: ASGIApp,
        connections: Connections,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSING_SECONDS,
        )
        super().__init__(config)
        self.told_to_stop = asyncio.Event()
        self._told_to_end = asyncio.Event()
        self._told_at = 0.0
        self._tls = tls
        self._connections = connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, whose protocols take neither connections nor limits."""
        await super().startup(sockets=[])
        protocol = partial(
            LimitedProtocol,
            connections=self._connections,
            limits=Limits(),
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        self.servers = [await self._listen(listener, protocol) for listener in sockets or ()]

    async def _listen(self, listener: socket.socket, protocol: Callable[[], LimitedProtocol]) -> Any:
        if self._tls is not None:
            return TlsListener(listener, protocol, self._tls)
        loop = asyncio.get_running_loop()
        return await loop.create_server(protocol, sock=listener, backlog=self.config.backlog)

    async def main_loop(self) -> None:
        """As uvicorn's, which wakes up ten times a second to see whether it is to end."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATE_SECONDS):
                    await self._told_to_end.wait()

    def end(self) -> None:
        """Close the port and what is connected: `serve` returns then."""
        self.should_exit = True
        self._told_to_end.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks for an orderly end, and so does every SIGTERM after it: `timeout` and `make` send one
        to the process and one to its group. A later SIGINT, Ctrl-C by a person who will not wait, ends it at once."""
        now = time.monotonic()
        if not self.told_to_stop.is_set():
            self._told_at = now
            self.told_to_stop.set()
        elif sig == signal.SIGINT and now - self._told_at >= AGAIN_SECONDS:
            self.force_exit = True
            self.end()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but SIGTERM stays caught: one that comes as the process ends would give it another status."""
        signal.signal(signal.SIGTERM, self.handle_exit)
        before = signal.signal(signal.SIGINT, self.handle_exit)
        yield
        signal.signal(signal.SIGINT, before)
