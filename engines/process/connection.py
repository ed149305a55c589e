"""The engine's end of the socket to the server's process."""

import asyncio
import select
import socket

from engines.process import frames

READ_BYTES = 1 << 20


class Closed(Exception):
    """The server has gone."""


class Connection:
    """Carries messages as `frames` says. For a loop of steps, which asks and tells in turn, and for one of asyncio."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._splitter = frames.Splitter(frames.decode_to_engine)

    def first(self) -> frames.Start:
        """Wait for the first message. Raises Closed, Unreadable."""
        while not (messages := self.receive()):
            select.select([self.socket], [], [])
        (start,) = messages
        assert isinstance(start, frames.Start), "the first message says what to load"
        return start

    def receive(self) -> list[frames.ToEngine]:
        """What has arrived, without waiting. Raises Closed, Unreadable."""
        messages: list[frames.ToEngine] = []
        while select.select([self.socket], [], [], 0)[0]:
            try:
                data = self.socket.recv(READ_BYTES)
            except ConnectionError as error:  # it has gone without reading what we sent
                raise Closed from error
            if not data:
                raise Closed
            messages += self._splitter.feed(data)
        return messages

    def send(self, message: frames.FromEngine) -> None:
        """Raises Closed."""
        try:
            self.socket.sendall(frames.frame(message))
        except OSError as error:
            raise Closed from error

    async def send_async(self, message: frames.FromEngine) -> None:
        """The same for a socket that does not block. Raises Closed."""
        try:
            await asyncio.get_running_loop().sock_sendall(self.socket, frames.frame(message))
        except OSError as error:
            raise Closed from error
