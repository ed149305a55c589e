"""Answers that a client may stop waiting for: server-sent events, and whatever else takes long."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope
from starlette.types import Send as AsgiSend

from server.deps import find_part
from server.http.connections.room import Connections
from server.http.errors import SlowReader, error_body
from server.http.settings import HttpSettings

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MOST_UNSENT = 4 << 20
"""Bytes of a stream that may wait for a client to read. With more, its request is ended."""
PIECE_BYTES = 256 << 10
"""Bytes that are written at once; a longer event is written whole."""
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # the second for nginx, which else holds events back


Send = Callable[[Any], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventStyle:
    """How the streams of one API look."""

    named: bool
    """Each event is told by its `type` as well: in a line of its own, before its data."""
    errors: Callable[[Exception, str], list[Any]]
    """The events that tell an error, which ends the stream. The text is the request's id."""
    end: bytes
    """What stands behind the last event."""
    keep_alive: bytes = b": keep-alive\n\n"
    """What is sent while there is no event."""

    def encode(self, event: Any) -> bytes:
        data = b"data: " + orjson.dumps(event) + b"\n\n"
        return b"event: " + event["type"].encode() + b"\n" + data if self.named else data


def _as_chunk(error: Exception, request_id: str) -> list[Any]:
    return [error_body(error, request_id)]


CHUNKS = EventStyle(named=False, errors=_as_chunk, end=b"data: [DONE]\n\n")


async def stream_events(
    request: Request,
    work: Callable[[Send], Coroutine[Any, Any, None]],
    *,
    keep_alive: float,
    style: EventStyle = CHUNKS,
) -> StreamingResponse:
    """Answer with the events that `work` sends, each serialised as JSON.

    The first event must not come before the engine's first output: an error in its place is raised here, and so gets
    an answer with a status. Only where the first output takes longer than `keep_alive` seconds does the stream open
    without it; an error then goes into the stream, as any later one does. `work` is cancelled as soon as the client
    goes away.
    """

    def on_slow(error: SlowReader) -> None:
        logger.warning("The request is ended: %s", error)
        find_part(request, Connections).on_refusal(error)

    events = _Events(work, style.encode, on_slow)
    try:
        await until_disconnect(request, events.wait(keep_alive))
        events.raise_if_refused()
    except BaseException:
        await events.close()
        raise
    return _EventStream(request, events, keep_alive, style)


async def until_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`. It is cancelled where the client goes away first: ClientDisconnect."""
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    def __init__(self, request: Request, events: "_Events", keep_alive: float, style: EventStyle) -> None:
        super().__init__(_pieces(request, events, keep_alive, style), headers=HEADERS, media_type="text/event-stream")
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.close()


async def _pieces(
    request: Request, events: "_Events", keep_alive: float, style: EventStyle
) -> AsyncGenerator[bytes, None]:
    """What is ready, in one piece: a slow client, or a fast engine, costs one write for many events."""
    while True:
        if not await events.wait(keep_alive):
            yield style.keep_alive
            continue
        piece = events.take()
        if events.over:
            break
        yield piece
    if events.error is not None:
        find_part(request, HttpSettings).on_refusal(events.error)
        piece += b"".join(map(style.encode, style.errors(events.error, request.state.request_id)))
    yield piece + style.end


class _Events:
    """Events that `work` sends from a task of its own, kept until they are written."""

    def __init__(
        self,
        work: Callable[[Send], Coroutine[Any, Any, None]],
        encode: Callable[[Any], bytes],
        on_slow: Callable[[SlowReader], None],
    ) -> None:
        self._encode = encode
        self._ready: deque[bytes] = deque()
        self._unsent = 0  # bytes of them
        self._news = asyncio.Event()  # events are ready, or no more will come
        self.ended = False
        """No more events will come. Some may be ready still."""
        self.error: Exception | None = None
        """The error that ended them early."""
        self._on_slow = on_slow
        self._task = asyncio.create_task(self._run(work))

    async def _run(self, work: Callable[[Send], Coroutine[Any, Any, None]]) -> None:
        try:
            await work(self._send)
        except Exception as error:  # noqa: BLE001 (whatever it is, the client is told)
            self.error = error
        finally:
            self.ended = True
            self._news.set()

    def _send(self, event: Any) -> None:
        """Raises SlowReader, in the work that makes the events, where too many wait for a client that does not read."""
        encoded = self._encode(event)
        self._ready.append(encoded)
        self._unsent += len(encoded)
        self._news.set()
        if self._unsent > MOST_UNSENT:
            self._ready.clear()
            self._unsent = 0
            error = SlowReader(f"The stream was not read: {MOST_UNSENT >> 20} MiB of it waited to be sent.")
            self._on_slow(error)
            raise error

    async def wait(self, timeout: float) -> bool:
        """Whether there was news within `timeout` seconds."""
        if not self._news.is_set():
            alarm = asyncio.get_running_loop().call_later(timeout, self._news.set)
            try:
                await self._news.wait()
            finally:
                alarm.cancel()
        if self._ready or self.ended:
            return True
        self._news.clear()
        return False

    def take(self) -> bytes:
        """Some of what is ready: small enough for the connection to say that it is full."""
        taken: list[bytes] = []
        room = PIECE_BYTES
        while self._ready and room > 0:
            taken.append(self._ready.popleft())
            room -= len(taken[-1])
        piece = b"".join(taken)
        self._unsent -= len(piece)
        if not self._ready and not self.ended:
            self._news.clear()
        return piece

    @property
    def over(self) -> bool:
        """Nothing is ready, and no more will come."""
        return self.ended and not self._ready

    def raise_if_refused(self) -> None:
        """Raise the error that came before any event."""
        if self.error is not None and not self._ready:
            raise self.error

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
