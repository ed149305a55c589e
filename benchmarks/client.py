"""A streaming chat client, `python -m benchmarks.client URL MODEL [KEY]`: little more than a socket.

HTTP libraries cost a client more for each chunk than a fast server spends on it, and on a small machine the client's
time is taken from the server. So what comes is only noted with its time, and read once the answer is whole.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

import orjson
import uvloop

from benchmarks.driver import Answer, run_concurrently, serve_loads
from benchmarks.workload import Load


class Refused(ValueError):
    """The answer is no stream."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"status {status}: {reason}")
        self.status = status


class Client:
    def __init__(self, url: str, model: str, key: str | None = None) -> None:
        self._host, self._port = urlsplit(url).hostname or "", urlsplit(url).port or 80
        self._model = model
        self._key = "" if key is None else f"Authorization: Bearer {key}\r\n"

    async def ask(self, load: Load, position: int) -> Answer:
        """Send one request and note when its pieces come. Whatever goes wrong becomes the answer's error."""
        answer = Answer(started=time.perf_counter())
        try:
            connection = await self._send(self._body(load, position))
            try:
                await connection.end()
            finally:
                connection.close()
            events = Events()
            for when, data in connection.pieces:
                for event in events.feed(data):
                    _note(answer, event, when)
            events.check()
            if not answer.output_tokens:
                answer.error = answer.error or "the stream ended without usage"
        except (OSError, EOFError, ValueError, LookupError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.ended = time.perf_counter()
        return answer

    def _body(self, load: Load, position: int) -> dict[str, Any]:
        return {
            "model": load.models[position % len(load.models)] if load.models else self._model,
            "messages": load.messages[position],
            "max_tokens": load.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **load.sampling,
            **load.extra,
        }

    async def stream(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of one answer, over a connection of its own, which ends with the iterator. Raises Refused."""
        connection = await self._send(body)
        events, read = Events(), 0
        try:
            while not connection.over or read < len(connection.pieces):
                await connection.more(read)
                for _, data in connection.pieces[read:]:
                    read += 1
                    for event in events.feed(data):
                        yield event
            events.check()
        finally:
            connection.close()

    async def _send(self, body: dict[str, Any]) -> "Connection":
        content = orjson.dumps(body)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n"
            f"{self._key}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(Connection, self._host, self._port)
        transport.write(head.encode() + content)
        return connection


class Connection(asyncio.Protocol):
    """Keeps what comes, and when it came, until it is read."""

    def __init__(self) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.over = False
        """The answer has ended, or the connection has."""
        self._awaited: asyncio.Future[None] | None = None
        self._until_end = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))
        self.over |= data.endswith(b"0\r\n\r\n") and (len(data) == 5 or data[-7:-5] == b"\r\n")  # the last chunk
        if self.over or not self._until_end:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = True
        self._wake()

    def _wake(self) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)

    async def more(self, read: int) -> None:
        """Wait until there are more than `read` pieces, or no more will come."""
        if not self.over and len(self.pieces) <= read:
            self._awaited = asyncio.get_running_loop().create_future()
            await self._awaited

    async def end(self) -> None:
        self._until_end = True
        while not self.over:
            await self.more(len(self.pieces))

    def close(self) -> None:
        self._transport.close()


class Events:
    """The events of an answer, from the pieces that it comes in."""

    def __init__(self) -> None:
        self._status = 0  # until the head has come
        self._chunked = False
        self._rest = b""  # not read yet
        self._body = b""  # without what has been read of it
        self._whole = False

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        self._rest += data
        if not self._status and not self._read_head():
            return []
        if self._chunked:
            self._read_chunks()
        else:
            self._body, self._rest = self._body + self._rest, b""
        if self._status != 200:
            return []
        *lines, self._body = self._body.split(b"\n")
        return [
            orjson.loads(line[5:]) for line in lines if line.startswith(b"data:") and line.strip() != b"data: [DONE]"
        ]

    def check(self) -> None:
        """Raise Refused where the answer was no stream, EOFError where it broke off."""
        if self._status not in (0, 200):
            raise Refused(self._status, " ".join(self._body[:600].decode(errors="replace").split()))
        if not self._status or (self._chunked and not self._whole):
            raise EOFError("the connection ended before the answer")

    def _read_head(self) -> bool:
        head, end, rest = self._rest.partition(b"\r\n\r\n")
        if not end:
            return False
        text = head.decode("latin-1").lower()
        self._status, self._chunked = int(text.split()[1]), "transfer-encoding: chunked" in text
        self._rest = rest
        return True

    def _read_chunks(self) -> None:
        while not self._whole:
            size, end, rest = self._rest.partition(b"\r\n")
            if not end or len(rest) < int(size, 16) + 2:
                return
            self._whole = int(size, 16) == 0
            self._body += rest[: int(size, 16)]
            self._rest = rest[int(size, 16) + 2 :]


def _note(answer: Answer, event: dict[str, Any], when: float) -> None:
    if "error" in event:
        raise ValueError(orjson.dumps(event["error"]).decode())
    if any((choice.get("delta") or {}).get("content") for choice in event.get("choices") or ()):
        answer.arrivals.append(when)
    if usage := event.get("usage"):  # of several, the last one is the sum
        answer.prompt_tokens, answer.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]


def main(url: str, model: str, key: str | None = None) -> None:
    client = Client(url, model, key)
    serve_loads(lambda load: uvloop.run(run_concurrently(load, client.ask)), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
