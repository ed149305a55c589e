"""A streaming chat client, `python -m benchmarks.client URL MODEL [KEY]`: little more than a socket.

HTTP libraries cost a client more for each chunk than a fast server spends on it, and on a small machine the client's
time is taken from the server.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from benchmarks.driver import Answer, run_concurrently, serve_loads
from benchmarks.workload import Load


class Refused(ValueError):
    """The answer is no stream."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"status {status}: {reason}")
        self.status = status


class Client:
    def __init__(self, url: str, model: str, key: str | None = None) -> None:
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port
        self._model = model
        self._key = "" if key is None else f"Authorization: Bearer {key}\r\n"

    async def ask(self, load: Load, position: int) -> Answer:
        """Send one request and note when its pieces come. Whatever goes wrong becomes the answer's error."""
        answer = Answer(started=time.perf_counter())
        try:
            async for event in self.stream(self._body(load, position)):
                _note(answer, event)
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
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            content = json.dumps(body).encode()
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n"
                f"{self._key}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            )
            writer.write(head.encode() + content)
            status, chunked = await _read_head(reader)
            if status != 200:
                reason = (await reader.read(600)).decode(errors="replace")
                raise Refused(status, " ".join(reason.split()))
            async for line in _lines(reader, chunked):
                if line.startswith(b"data:") and line != b"data: [DONE]":
                    yield json.loads(line[5:])
        finally:
            writer.close()


def _note(answer: Answer, event: dict[str, Any]) -> None:
    if "error" in event:
        raise ValueError(json.dumps(event["error"]))
    if any((choice.get("delta") or {}).get("content") for choice in event.get("choices") or ()):
        answer.arrivals.append(time.perf_counter())
    if usage := event.get("usage"):  # of several, the last one is the sum
        answer.prompt_tokens, answer.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether the body comes in chunks."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    return int(head.split()[1]), "transfer-encoding: chunked" in head


async def _lines(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    """The body's lines, without their ends and without empty ones."""
    rest = b""
    async for piece in _pieces(reader, chunked):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if stripped := line.strip():
                yield stripped


async def _pieces(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    if not chunked:
        while piece := await reader.read(65536):
            yield piece
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]


def main(url: str, model: str, key: str | None = None) -> None:
    client = Client(url, model, key)
    serve_loads(lambda load: asyncio.run(run_concurrently(load, client.ask)), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
