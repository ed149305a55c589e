"""TLS handshakes: a limited number at a time, each for a limited time."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

logger = logging.getLogger(__name__)

MOST_HANDSHAKES = 128
"""Handshakes at a time. One more ends the oldest."""
HANDSHAKE_SECONDS = 15
PAUSE_SECONDS = 1
"""Seconds before the next try where the process can open no more files."""


class TlsListener:
    """Accepts connections until it is closed; used as an asyncio server is."""

    def __init__(
        self, listener: socket.socket, protocol: Callable[[], asyncio.BaseProtocol], context: ssl.SSLContext
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._protocol = protocol
        self._context = context
        self._handshakes: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._accepting = asyncio.create_task(self._accept())

    def close(self) -> None:
        self._accepting.cancel()
        for handshake in self._handshakes:
            handshake.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(self._accepting, *self._handshakes, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except Exception as error:  # noqa: BLE001 (whatever it is, such as too many open files, may pass)
                logger.error("No connection can be taken: %s", error)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if len(self._handshakes) >= MOST_HANDSHAKES:
                self._end(next(iter(self._handshakes)))
            handshake = asyncio.create_task(self._shake_hands(connection))
            self._handshakes[handshake] = None
            handshake.add_done_callback(lambda done: self._handshakes.pop(done, None))

    def _end(self, handshake: asyncio.Task[None]) -> None:
        del self._handshakes[handshake]
        handshake.cancel()

    async def _shake_hands(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                self._protocol, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except OSError as error:  # it took too long, or the client speaks no TLS or does not trust the certificate
            logger.debug("A TLS handshake failed: %s", error)
