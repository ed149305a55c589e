"""What a connection may cost: requests that are too long, too slow or no requests, and clients that do not read."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.http.sse import until_disconnect
from tests.server.http.connections.served import served
from tests.until import async_until

GET = b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /read HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SOUND = (
    GET,
    POST + b"Content-Length: 5\r\n\r\nhello",
    CHUNKED + b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"GET http://b/x?y=1#z HTTP/1.1\r\nHost: b\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
)
PIECE = b"x" * (64 << 10)
ANSWER_BYTES = 64 << 20


class App:
    """`/read` says how much it read, `/wait` waits for `open`, `/large` answers at length; others say their path."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.seen: list[str] = []
        self.left: list[str] = []
        """Paths whose clients went away."""
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = request.url.path
        self.seen.append(path)
        answer = PlainTextResponse(path)
        try:
            if path == "/read":
                answer = PlainTextResponse(str(len(await request.body())))
                self.headers = list(scope["headers"])
            elif path.startswith("/wait"):
                await self._wait(request)
            elif path == "/large":
                pieces = (PIECE for _ in range(ANSWER_BYTES // len(PIECE)))
                return await StreamingResponse(self._watched(pieces))(scope, receive, send)
            elif path == "/pieces":
                return await StreamingResponse(self._watched(iter((b"a", b"", b"bc"))))(scope, receive, send)
            elif path == "/late":
                await self.open.wait()
                answer = PlainTextResponse(str(len(await request.body())))
        except ClientDisconnect:
            self.left.append(path)
            return
        await answer(scope, receive, send)

    async def _wait(self, request: Request) -> None:
        await request.body()
        await until_disconnect(request, self.open.wait())

    async def _watched(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        try:
            for piece in pieces:
                yield piece
        finally:
            self.left.append("/large")


# ---- too long


async def test_a_url_that_is_too_long_is_refused_before_it_has_come() -> None:
    async with served(App()) as here:
        answer = await here.told(b"GET /" + b"x" * (17 << 20))
    assert (answer.status, answer.code) == (414, "request_line_too_long")
    assert answer.headers["connection"] == "close"
    assert here.refused == ["request_line_too_long"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX: " + b"x" * (65 << 10) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 129 + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 1000) for i in range(70)),
        b"GET / HTTP/1.1\r\n" + b"X" * (17 << 20),
        b"\r\n" * (100 << 10),
        CHUNKED + b"3;" + b"x" * (17 << 20),
        CHUNKED + b"0\r\nX: " + b"x" * (17 << 20),
        POST + b"Content-Length: 1\r\n\r\nx" + b"GET / HTTP/1.1\r\nX: " + b"x" * (17 << 20),
    ],
    ids=["value", "number", "together", "name", "empty lines", "chunk extension", "trailer", "of a second request"],
)
async def test_headers_that_are_too_large_are_refused(head: bytes) -> None:
    async with served(App()) as here:
        wire = await here.connect()
        wire.send(head)
        text = await wire.rest()
    assert b"HTTP/1.1 431 Request Header Fields Too Large\r\n" in text and b"request_headers_too_large" in text


async def test_what_is_within_the_limits_is_answered() -> None:
    headers = b"".join(b"X-%d: %s\r\n" % (i, b"x" * 490) for i in range(127))
    async with served(App()) as here:
        answer = await here.told(b"GET /" + b"y" * (16380) + b" HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n")
    assert answer.status == 200 and len(answer.body) == 16381


@pytest.mark.parametrize("path", ["//hello", "//", "//a/hello", "///hello"])
async def test_a_path_may_begin_with_two_slashes_and_names_no_host(path: str) -> None:
    async with served(App()) as here:
        answer = await here.told(f"GET {path}?a=b HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert (answer.status, answer.body.decode()) == (200, path)


# ---- HTTP/1.0


@pytest.mark.parametrize("more", [b"", b"Connection: keep-alive\r\n"])
async def test_an_answer_of_unknown_length_to_http_1_0_ends_with_the_connection_and_has_no_chunks(more: bytes) -> None:
    async with served(App()) as here:
        wire = await here.connect()
        wire.send(b"GET /pieces HTTP/1.0\r\n" + more + b"\r\n")
        head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
    assert body == b"abc" and b"\r\nconnection: close" in head and b"transfer-encoding" not in head


async def test_one_of_a_known_length_is_as_long_as_it_says() -> None:
    async with served(App()) as here:
        answer = await here.told(b"GET /hello HTTP/1.0\r\n\r\n")
    assert (answer.status, answer.body) == (200, b"/hello")


async def test_http_1_0_knows_no_head_before_the_answer() -> None:
    async with served(App()) as here:
        wire = await here.connect()
        wire.send(b"POST /read HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        wire.send(b"a")
        answer = await wire.answer()
    assert (answer.status, answer.body) == (200, b"1")


# ---- too slow


async def test_headers_that_take_too_long_are_refused() -> None:
    async with served(App(), head_seconds=0.3) as here:
        wire = await here.connect()
        for piece in (b"GET / HT", b"TP/1.1\r\n", b"Host: a\r\n"):
            wire.send(piece)
            await asyncio.sleep(0.05)
        answer = await wire.answer()
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert await wire.rest() == b""


async def test_the_time_for_headers_begins_with_their_first_byte() -> None:
    async with served(App(), head_seconds=0.2) as here:
        wire = await here.connect()
        await asyncio.sleep(0.5)
        for _ in range(2):
            wire.send(GET)
            assert (await wire.answer()).body == b"/hello"
            await asyncio.sleep(0.5)


async def test_a_connection_without_a_request_is_closed_without_a_word() -> None:
    async with served(App(), keep_alive=0.5) as here:
        silent, after = await here.connect(), await here.connect()
        after.send(GET)
        await after.answer()
        assert await silent.rest() == await after.rest() == b""
        await async_until(lambda: len(here.connections) == 0)


async def test_a_body_that_does_not_come_is_refused_and_its_request_ends() -> None:
    app = App()
    async with served(app, rate_seconds=0.2) as here:
        wire = await here.connect()
        wire.send(POST + b"Content-Length: 1000\r\n\r\nx")
        answer = await wire.answer()
        assert (answer.status, answer.code) == (408, "request_timeout")
        await async_until(lambda: app.left == ["/read"])
        assert here.refused == ["request_timeout"]


async def test_a_body_that_comes_slowly_but_steadily_is_read() -> None:
    async with served(App(), rate_seconds=1, min_rate=100) as here:
        wire = await here.connect()
        wire.send(POST + b"Content-Length: 3000\r\n\r\n")
        for _ in range(30):
            wire.send(b"x" * 100)
            await asyncio.sleep(0.05)
        assert (await wire.answer()).body == b"3000"


async def test_a_body_that_the_server_does_not_read_is_not_slow() -> None:
    app = App()
    size = 40 * len(PIECE)
    async with served(app, rate_seconds=0.5) as here:
        wire = await here.connect()
        wire.send(b"POST /late HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + PIECE * 40)
        waiting = await here.connect()
        waiting.send(b"POST /late HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        await asyncio.sleep(1.2)
        app.open.set()
        assert (await wire.answer()).body == str(size).encode()
        assert await waiting.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        waiting.send(b"abc")
        assert (await waiting.answer()).body == b"3"


async def test_a_body_that_goes_on_after_the_answer_does_not_keep_the_connection() -> None:
    async with served(App(), linger_seconds=0.1) as here:
        wire = await here.connect()
        wire.send(b"POST /answered HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nx")
        assert (await wire.answer()).status == 200
        wire.send(b"x")
        assert await wire.rest() == b""


# ---- no requests


@pytest.mark.parametrize(
    "request_",
    [
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        POST + b"Content-Length: 5, 5\r\n\r\nhello",
        POST + b"Content-Length: +5\r\n\r\nhello",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"3\nabc\n0\n\n",
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET http://a?b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
        "GET /é HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
        b"\x16\x03\x01\x00\xfa\x01\x00\x00\xf6\x03\x03",
    ],
)
async def test_what_is_no_request_or_could_be_read_in_two_ways_is_refused(request_: bytes) -> None:
    app = App()
    async with served(app) as here:
        wire = await here.connect()
        wire.send(request_)
        answer = await wire.answer()
        assert (answer.status, answer.code) == (400, "invalid_http") and b"callback" not in answer.body
        assert answer.headers["content-type"] == "application/json" and answer.headers["connection"] == "close"
        wire.send(GET)
        assert await wire.rest() == b""
    assert "/hello" not in app.seen


@pytest.mark.parametrize("seed", range(4))
async def test_requests_with_faults_anywhere_are_answered_or_refused(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(seed)

    def spoilt() -> bytes:
        text = bytearray(b"".join(chance.choices(SOUND, k=2)))
        for _ in range(chance.randint(0, 3)):
            at = chance.randrange(len(text))
            text[at : at + chance.randint(0, 4)] = bytes(
                chance.choices(b"\r\n :;\0\x7f/?*%,5\xff", k=chance.randint(0, 3))
            )
        return bytes(text)

    async with served(App(), head_seconds=2, rate_seconds=2, linger_seconds=0.2, keep_alive=2) as here:

        async def send(text: bytes) -> bytes:
            wire = await here.connect()
            for start in range(0, len(text), size := chance.randint(1, len(text))):
                wire.send(text[start : start + size])
            return await wire.rest()

        answers = await asyncio.gather(*(send(spoilt()) for _ in range(100)))
        await async_until(lambda: len(here.connections) == 0)
    assert {answer[:12] for answer in answers} <= {b"HTTP/1.1 200", b"HTTP/1.1 400", b"HTTP/1.1 408"}
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_trailers_and_extensions_of_chunks_are_dropped() -> None:
    app = App()
    async with served(app) as here:
        answer = await here.told(CHUNKED + b"3;a=b\r\nabc\r\n0\r\nAuthorization: Bearer k\r\n\r\n" + GET)
    assert answer.body == b"3"
    assert [name for name, _ in app.headers] == [b"host", b"transfer-encoding"]


async def test_a_request_that_would_change_the_protocol_is_answered_in_this_one() -> None:
    async with served(App()) as here:
        wire = await here.connect()
        wire.send(b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + GET)
        assert [(await wire.answer()).body for _ in range(2)] == [b"/a", b"/hello"]


# ---- one behind another


async def test_requests_that_do_not_wait_are_answered_one_after_another() -> None:
    async with served(App()) as here:
        wire = await here.connect()
        wire.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i for i in range(10)))
        assert [(await wire.answer()).body for _ in range(10)] == [b"/%d" % i for i in range(10)]


async def test_too_many_that_do_not_wait_end_the_connection_behind_the_first() -> None:
    app = App()
    async with served(app) as here:
        wire = await here.connect()
        wire.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n" + GET * 100_000)
        await async_until(lambda: here.refused == ["invalid_http"])
        app.open.set()
        assert (await wire.answer()).body == b"/wait"
        assert (await wire.answer()).code == "invalid_http"
        assert await wire.rest() == b""
    assert app.seen == ["/wait"]


async def test_a_faulty_request_does_not_spoil_the_answer_to_the_one_before() -> None:
    app = App()
    async with served(app) as here:
        wire = await here.connect()
        wire.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n" + b"nonsense\r\n\r\n")
        await async_until(lambda: here.refused == ["invalid_http"])
        app.open.set()
        assert (await wire.answer()).body == b"/wait"
        assert (await wire.answer()).code == "invalid_http"
        assert await wire.rest() == b""


async def test_a_client_that_leaves_is_missed_by_the_request_that_runs_and_the_others_never_begin() -> None:
    app = App()
    async with served(app) as here:
        wire = await here.connect()
        wire.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n" + GET * 3)
        await async_until(lambda: app.seen == ["/wait"])
        wire.close()
        await async_until(lambda: app.left == ["/wait"])
        await async_until(lambda: len(here.connections) == 0)
    assert app.seen == ["/wait"]


# ---- too many


async def test_the_connection_that_was_idle_longest_makes_room() -> None:
    async with served(App(), most=3) as here:
        first, second, third = [await here.connect() for _ in range(3)]
        first.send(GET)
        await first.answer()  # so that it has not been idle for as long as the second
        third.send(b"GET /half")
        fourth = await here.connect()
        assert await second.rest() == b""
        fourth.send(GET)
        first.send(GET)
        third.send(b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [(await wire.answer()).body for wire in (first, third, fourth)] == [b"/hello", b"/half", b"/hello"]
        assert len(here.connections) == 3


async def test_where_all_connections_are_busy_one_more_may_ask_for_health_only() -> None:
    app = App()
    async with served(app, most=2) as here:
        busy = [await here.connect() for _ in range(2)]
        for wire in busy:
            wire.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        await async_until(lambda: app.seen == ["/wait", "/wait"])
        answer = await here.told(GET)
        assert (answer.status, answer.code) == (503, "too_many_connections")
        assert (answer.headers["connection"], answer.headers["retry-after"]) == ("close", "1")
        healthy = await here.told(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (healthy.status, healthy.headers["connection"]) == (200, "close")
        app.open.set()
        for wire in busy:
            assert (await wire.answer()).body == b"/wait"
        assert (await here.told(GET)).status == 200


async def test_beyond_the_limit_the_path_of_a_proxy_is_no_part_of_a_path() -> None:
    app = App()
    async with served(app, most=1, root_path="/llm") as here:
        busy = await here.connect()
        busy.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        await async_until(lambda: app.seen == ["/wait"])
        paths = ("/llm/health", "/health", "/llm/v1/models", "/llm/v1/messages")
        told = [await here.told(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()) for path in paths]
        assert [answer.status for answer in told] == [200, 200, 503, 529], "Anthropic's clients know another status"
        app.open.set()
        assert (await busy.answer()).body == b"/wait"


# ---- clients that do not read


async def test_a_client_that_does_not_read_its_answer_is_left() -> None:
    app = App()
    async with served(app, send_seconds=0.3) as here:
        wire = await here.connect()
        wire.stop_reading()
        wire.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        await async_until(lambda: app.left == ["/large"])
        assert here.refused == ["slow_reader"]
        await async_until(lambda: len(here.connections) == 0)


async def test_a_client_that_reads_its_answer_slowly_but_steadily_gets_all_of_it() -> None:
    async with served(App(), send_seconds=1) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        length = 0
        while piece := await reader.read(1 << 20):
            length += len(piece)
            await asyncio.sleep(0.02)
        assert length > ANSWER_BYTES and here.refused == []
