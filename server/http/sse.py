"""Answers that a client may stop waiting for: server-sent events, and whatever else takes long."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope
from starlette.types import Send as AsgiSend

from server.deps import find_part
from server.http.connections.direct import Write, direct_writer
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
) -> Response:
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
    gone = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _EventStream(Response):
    media_type = "text/event-stream"

    def __init__(self, request: Request, events: "_Events", keep_alive: float, style: EventStyle) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS)  # of a body whose length nobody knows
        self._request = request
        self._events = events
        self._keep_alive = keep_alive
        self._style = style

    async def __call__(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        gone = asyncio.create_task(_disconnected(receive))
        gone.add_done_callback(lambda _: self._events.leave())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            self._events.write = direct_writer(scope)
            await self._write(send)
        finally:
            gone.cancel()
            await asyncio.gather(gone, self._events.close(), return_exceptions=True)

    async def _write(self, send: AsgiSend) -> None:
        """Write what is ready, in one piece, wherever it was not written already: a slow client, or a fast engine,
        costs one write for many events."""
        events = self._events
        while True:
            piece = events.take() if await events.wait(self._keep_alive) else self._style.keep_alive
            if events.left:
                return
            if events.over:
                break
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if events.error is not None:
            find_part(self._request, HttpSettings).on_refusal(events.error)
            told = self._style.errors(events.error, self._request.state.request_id)
            piece += b"".join(map(self._style.encode, told))
        await send({"type": "http.response.body", "body": piece + self._style.end, "more_body": False})


class _Events:
    """Events that `work` sends from a task of its own, kept until they are written.

    What one turn of the event loop brings is written together at its end: directly, where the connection takes it, and
    else by whoever is in `wait`.
    """

    def __init__(
        self,
        work: Callable[[Send], Coroutine[Any, Any, None]],
        encode: Callable[[Any], bytes],
        on_slow: Callable[[SlowReader], None],
    ) -> None:
        self.write: Write | None = None
        """Direct writes, once the answer has begun."""
        self.ended = False
        """No more events will come. Some may be ready still."""
        self.error: Exception | None = None
        """The error that ended them early."""
        self.left = False
        """The client has gone."""
        self._encode = encode
        self._ready: deque[bytes] = deque()
        self._unsent = 0  # bytes of them
        self._loop = asyncio.get_running_loop()
        self._flushes = False  # at the end of this turn
        self._waiting: asyncio.Future[None] | None = None  # whoever is in `wait`
        self._wrote = 0.0  # when something was written last
        self._on_slow = on_slow
        self._task = asyncio.create_task(self._run(work))

    async def _run(self, work: Callable[[Send], Coroutine[Any, Any, None]]) -> None:
        try:
            await work(self._send)
        except Exception as error:  # noqa: BLE001 (whatever it is, the client is told)
            self.error = error
        finally:
            self.ended = True
            self._wake()

    def _send(self, event: Any) -> None:
        """Raises SlowReader, in the work that makes the events, where too many wait for a client that does not read."""
        encoded = self._encode(event)
        self._ready.append(encoded)
        self._unsent += len(encoded)
        if not self._flushes:
            self._flushes = True
            self._loop.call_soon(self._flush)
        if self._unsent > MOST_UNSENT:
            self._ready.clear()
            self._unsent = 0
            error = SlowReader(f"The stream was not read: {MOST_UNSENT >> 20} MiB of it waited to be sent.")
            self._on_slow(error)
            raise error

    def _flush(self) -> None:
        self._flushes = False
        if self._waiting is None or self._waiting.done() or self.ended:  # whoever waited writes it, in order
            return
        if self.write is not None and self._ready:
            piece = self.take()
            if self.write(piece):
                self._wrote = self._loop.time()
            else:
                self._ready.appendleft(piece)
                self._unsent += len(piece)
        if self._ready:
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def wait(self, silence: float) -> bool:
        """Whether there is something to write, or no more to come; False after `silence` seconds without an event."""
        self._wrote = self._loop.time()
        if not (self._ready or self.ended or self.left):
            self._waiting = self._loop.create_future()
            self._set_alarm(silence, silence)
            try:
                await self._waiting
            finally:
                self._alarm.cancel()
        return bool(self._ready or self.ended)

    def _set_alarm(self, seconds: float, silence: float) -> None:
        self._alarm = self._loop.call_later(seconds, self._on_alarm, silence)

    def _on_alarm(self, silence: float) -> None:
        """One timer for many events: it was set before the last of them, and goes on from there."""
        left = self._wrote + silence - self._loop.time()
        if left > 0:
            self._set_alarm(left, silence)
        else:
            self._wake()

    def take(self) -> bytes:
        """Some of what is ready: small enough for the connection to say that it is full."""
        if len(self._ready) == 1:
            piece = self._ready.popleft()
        else:
            taken: list[bytes] = []
            room = PIECE_BYTES
            while self._ready and room > 0:
                taken.append(self._ready.popleft())
                room -= len(taken[-1])
            piece = b"".join(taken)
        self._unsent -= len(piece)
        return piece

    @property
    def over(self) -> bool:
        """Nothing is ready, and no more will come."""
        return self.ended and not self._ready

    def raise_if_refused(self) -> None:
        """Raise the error that came before any event."""
        if self.error is not None and not self._ready:
            raise self.error

    def leave(self) -> None:
        """The client has gone: nobody needs to be written to."""
        self.left = True
        self._wake()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
