"""HTTP/1.1 on one connection: uvicorn's, with bounds on what a client may send before its request is known, and on how
slowly it may send and read.

The limits are named after nginx's `large_client_header_buffers`, `client_header_timeout`, `send_timeout` and
`lingering_timeout`, and Apache's `RequestReadTimeout ... MinRate`.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from engines.errors import TuneserveError
from server.http.connections.direct import offer_direct_writes
from server.http.connections.refusals import only_probes, raw_answer
from server.http.connections.room import Connections, Room
from server.http.connections.unchunked import unchunked
from server.http.errors import (
    HeadersTooLarge,
    InvalidHttp,
    RequestLineTooLong,
    RequestTimeout,
    SlowReader,
    TooManyConnections,
)

logger = logging.getLogger(__name__)

SLICE = 16 << 10
"""Bytes that the parser gets at a time, so that little is taken in beyond a limit."""
DROPPING_PAUSE = 0.005
"""Seconds between two reads of what is dropped: a sender without end must not keep the loop busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    request_line: int = 16 << 10
    """Bytes of the URL."""
    headers: int = 64 << 10
    """Bytes of all headers together."""
    header_count: int = 128
    head_seconds: float = 15
    """Header timeout: from a request's first byte to the end of its headers."""
    min_rate: int = 500
    """Bytes a second of a body."""
    rate_seconds: float = 20
    """Seconds over which that is measured."""
    send_seconds: float = 60
    """Send timeout: seconds in which some of a waiting answer must be read, however little."""
    linger_seconds: float = 5
    """Seconds that a client has to read why it was refused, while what it still sends is dropped: the error is lost
    where a connection is closed under a sender."""
    pipelined: int = 16
    """Requests that wait for the answer to the one before."""


class _Stage(Enum):
    """What of a request comes next."""

    IDLE = auto()
    """Its first byte."""
    HEAD = auto()
    BODY = auto()


class LimitedProtocol(HttpToolsProtocol):
    def __init__(self, *, connections: Connections, limits: Limits, **given: Any) -> None:
        """`given` is uvicorn's."""
        super().__init__(**given)
        self._connections = connections
        self._limits = limits
        self._room: Room | None = None
        self._stage = _Stage.IDLE
        self._running: RequestResponseCycle | None = None  # `cycle` is of the last request, which may have to wait
        self._refusal: TuneserveError | None = None
        self._since = 0  # bytes since the parser last told of a request, headers or a piece of a body
        self._header_bytes = 0
        self._body_bytes = 0  # since the rate was last looked at
        self._waited_for_us = False  # at that moment
        self._alarm: asyncio.TimerHandle | None = None  # for what the client sends
        self._alarm_is_for: object = None
        self._read_alarm: asyncio.TimerHandle | None = None  # for what it reads
        self._unsent = 0

    # ---- the connection

    # uvicorn promises to take any transport, and uses what only those of streams have.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._room = self._connections.find_room(self)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if self._room is None:
            self._refuse(TooManyConnections("The server has too many connections."))
        elif self._connections.is_reserve(self._room):
            self.app = only_probes(self.app, self._connections.root_path, self._connections.on_refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_alarm(None)
        self._stop_read_alarm()
        self._unset_keepalive_if_required()
        if self._room is not None:
            self._room.leave(self)
        if self._running is not None:
            _disconnect(self._running)
        super().connection_lost(exc)

    def drop(self) -> None:
        self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        self.drop()  # to close would wait for a client that does not read

    # ---- what comes

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return self._drop_the_rest()
        self._unset_keepalive_if_required()
        if self._stage is _Stage.IDLE:
            self._stage = _Stage.HEAD
        view = memoryview(data)
        try:
            for start in range(0, len(view), SLICE):
                self._feed(view[start : start + SLICE])
        except TuneserveError as error:
            return self._refuse(error)
        except httptools.HttpParserError as error:
            return self._refuse(_why(error))
        self._watch()

    def _feed(self, piece: memoryview) -> None:
        self._since += len(piece)
        while piece:
            try:
                self.parser.feed_data(piece)
                break
            except httptools.HttpParserUpgrade as upgrade:  # which is not offered: the request is answered as it is
                piece = piece[upgrade.args[0] :]
        most = self._limits.request_line + self._limits.headers
        if self._since > most:  # of one header, of a trailer, of a chunk's extension
            raise HeadersTooLarge("The request's headers are too large.")

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self._limits.pipelined:
            raise InvalidHttp("Too many requests wait for the answer to the one before them.")
        super().on_message_begin()
        self._stage = _Stage.HEAD
        self._since = self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._limits.request_line:
            raise RequestLineTooLong(f"The request's URL is longer than {self._limits.request_line} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage is not _Stage.HEAD:
            return  # a trailer: it comes too late to be looked at
        super().on_header(name, value)
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > self._limits.headers:
            raise HeadersTooLarge(f"The request's headers are larger than {self._limits.headers} bytes.")
        if len(self.headers) > self._limits.header_count:
            raise HeadersTooLarge(f"The request has more than {self._limits.header_count} headers.")

    def on_headers_complete(self) -> None:
        self._check_head()
        if self.url.startswith(b"//"):  # a path (RFC 9112, 3.2.1), which the parser of URLs takes for a host
            self.url = b"http://-" + self.url
        self._stage = _Stage.BODY
        self._since = 0
        super().on_headers_complete()

    def _check_head(self) -> None:
        """What the parser lets pass, and two servers may read in two ways."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise InvalidHttp("The request is not HTTP/1.1.")
        if self.parser.get_method() == b"CONNECT":
            raise InvalidHttp("CONNECT is not supported: this server is no proxy.")
        if not self.url.startswith(b"/") and httptools.parse_url(self.url).path is None:
            raise InvalidHttp("The request's URL has no path.")
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise InvalidHttp("The request must have one Host header.")
        encodings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if encodings and (encodings != [b"chunked"] or version == "1.0"):
            raise InvalidHttp("The request's transfer encoding is not supported.")
        if self.parser.should_upgrade() and (encodings or self._announced()):
            raise InvalidHttp("The protocol cannot be changed by a request that has a body: send it as HTTP/1.1.")

    def _announced(self) -> bool:
        return any(name == b"content-length" and value.strip(b"0") for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        self._since = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._since = 0
        self._stage = _Stage.IDLE
        super().on_message_complete()

    # ---- answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        offer_direct_writes(cycle)
        if self._room is not None:
            self._room.work(self)
        super()._start_asgi_task(cycle, unchunked(app, cycle) if cycle.scope["http_version"] == "1.0" else app)

    def on_response_complete(self) -> None:
        self._running = None
        super().on_response_complete()  # begins the next one, or the wait for it
        if self.transport.is_closing():
            self._set_alarm(self._limits.send_seconds, self.drop)  # the end of the answer may never be read
        elif self._refusal is not None:
            self._tell(self._refusal)
        elif self._running is None:
            if self._room is not None:
                self._room.rest(self)
            if self._stage is not _Stage.IDLE:
                self._unset_keepalive_if_required()
            self._watch()

    def _refuse(self, error: TuneserveError) -> None:
        """Read no more requests, and answer with `error`; where an earlier request is running, after its answer."""
        self._refusal = error
        self._unset_keepalive_if_required()
        self._set_alarm(None)
        self.pipeline.clear()
        self._connections.on_refusal(error)
        logger.info("A connection of %s is closed: %s", self.client[0] if self.client else "-", error)
        running = self._running
        if running is None:
            self._tell(error)
        elif running is self.cycle and running.more_body:  # the fault is in its own body
            _disconnect(running)
            if running.response_started:
                return self.drop()
            self._tell(error)

    def _tell(self, error: TuneserveError) -> None:
        self._unset_keepalive_if_required()
        scope = {**(self.scope or {}), "root_path": self._connections.root_path}
        self.transport.write(raw_answer(error, scope))
        self._linger()

    def _linger(self) -> None:
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()  # TLS: it tells the client, and drops what still comes until that one closes too
        if self._room is not None:
            self._room.rest(self)
        self._set_alarm(self._limits.linger_seconds, self.drop)

    def _drop_the_rest(self) -> None:
        self.flow.pause_reading()
        self.loop.call_later(DROPPING_PAUSE, self._read_on)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    # ---- how long it takes

    def _watch(self) -> None:
        """Set the alarm for what the client is to send now; one that is set for it already runs on."""
        if self._stage is _Stage.HEAD and self._running is None:
            self._set_alarm(self._limits.head_seconds, self._on_slow_head)
        elif self._stage is _Stage.BODY and self.cycle.response_complete:
            self._set_alarm(self._limits.linger_seconds, self.drop)
        elif self._stage is _Stage.BODY:
            if self._alarm_is_for != self._check_body:
                self._watch_body()
        else:
            self._set_alarm(None)

    def _set_alarm(self, seconds: float | None, then: Callable[[], None] | None = None, *, anew: bool = False) -> None:
        if then == self._alarm_is_for and not anew:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = None if seconds is None or then is None else self.loop.call_later(seconds, then)
        self._alarm_is_for = then

    def _on_slow_head(self) -> None:
        self._refuse(RequestTimeout(f"The request's headers took longer than {self._limits.head_seconds:g} s."))

    def _watch_body(self) -> None:
        self._body_bytes = 0
        self._waited_for_us = self._waits_for_us()
        self._set_alarm(self._limits.rate_seconds, self._check_body, anew=True)

    def _check_body(self) -> None:
        """Refuse a body that comes too slowly, unless it was we who did not read it."""
        ours = self._waited_for_us or self._waits_for_us()
        if not ours and self._body_bytes < self._limits.min_rate * self._limits.rate_seconds:
            rate = self._limits.min_rate
            return self._refuse(RequestTimeout(f"The request's body came slower than {rate} bytes a second."))
        self._watch_body()

    def _waits_for_us(self) -> bool:
        return self.flow.read_paused or self.cycle.waiting_for_100_continue or self.cycle is not self._running

    def pause_writing(self) -> None:
        super().pause_writing()
        self._set_read_alarm()

    def resume_writing(self) -> None:
        self._stop_read_alarm()
        super().resume_writing()

    def _set_read_alarm(self) -> None:
        self._stop_read_alarm()
        self._unsent = self.transport.get_write_buffer_size()
        self._read_alarm = self.loop.call_later(self._limits.send_seconds, self._check_reader)

    def _stop_read_alarm(self) -> None:
        if self._read_alarm is not None:
            self._read_alarm.cancel()
            self._read_alarm = None

    def _check_reader(self) -> None:
        """End the connection of a client that does not read its answer: nothing is written in the meantime."""
        if self.transport.get_write_buffer_size() < self._unsent:
            return self._set_read_alarm()
        error = SlowReader(f"Nothing of the answer was read for {self._limits.send_seconds:g} s.")
        self._connections.on_refusal(error)
        logger.warning("A connection of %s is closed: %s", self.client[0] if self.client else "-", error)
        self.drop()


def _disconnect(cycle: RequestResponseCycle) -> None:
    if not cycle.response_complete:
        cycle.disconnected = True
        cycle.message_event.set()


def _why(error: httptools.HttpParserError) -> TuneserveError:
    """What one of our callbacks raised, or what the parser found."""
    cause = error.__context__
    if isinstance(cause, TuneserveError):
        return cause
    if cause is not None and not isinstance(cause, httptools.HttpParserError):
        logger.error("A request could not be read: %r", cause, exc_info=cause)  # a fault of ours
    return InvalidHttp(f"The request is not valid HTTP: {error}.")
