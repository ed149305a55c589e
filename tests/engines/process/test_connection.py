"""Messages over a socket, however it cuts them."""

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from engines.errors import InvalidRequest
from engines.process import frames
from engines.process.connection import Closed, Connection
from engines.types import EngineStats

SENT = [frames.Abort("r" * length) for length in (0, 1, 300, 100_000)]


@pytest.mark.parametrize("part", [1, 7, 4096, 1 << 20])
def test_messages_are_whole_whatever_parts_they_come_in(part: int) -> None:
    stream = b"".join(frames.frame(message) for message in SENT)
    splitter = frames.Splitter(frames.decode_to_engine)
    parts = [stream[start : start + part] for start in range(0, len(stream), part)]
    assert [message for data in parts for message in splitter.feed(data)] == SENT


GARBAGE = {
    "what no message begins with": b"Traceback (most recent call last):",
    "a length of 3 GB": b"tnsv" + struct.pack("!I", 3 << 30),
    "no message at all": b"tnsv" + struct.pack("!I", 4) + b"\xc1\xc1\xc1\xc1",
    "a message of another kind": b"tnsv" + struct.pack("!I", 7) + b"\x81\xa4type\x01",
    "broken text": b"tnsv" + struct.pack("!I", 9) + b"\x81\xa4type\xa2\xff\xfe",
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_message_is_noticed_at_once(garbage: str) -> None:
    splitter = frames.Splitter(frames.decode_to_engine)
    assert splitter.feed(frames.frame(SENT[1])) == [SENT[1]]
    with pytest.raises(frames.Unreadable):
        splitter.feed(GARBAGE[garbage])


def test_a_message_that_is_too_long_is_the_requests_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_BYTES", 1000)
    assert frames.frame(SENT[2])
    with pytest.raises(InvalidRequest, match="1000"):
        frames.frame(SENT[3])


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Connection]]:
    server, engine = socket.socketpair()
    with server, engine:
        yield server, Connection(engine)


def test_what_has_arrived_is_received_without_waiting(ends: tuple[socket.socket, Connection]) -> None:
    server, connection = ends
    assert connection.receive() == []
    server.sendall(frames.frame(SENT[0]) + frames.frame(SENT[1]) + b"\0")
    assert connection.receive() == SENT[:2]
    assert connection.receive() == []


def test_the_first_message_is_waited_for_to_its_end(ends: tuple[socket.socket, Connection]) -> None:
    server, connection = ends
    start = frames.frame(frames.Start({"model": "m" * 1000}))
    server.sendall(start[:500])
    later = threading.Timer(0.05, server.sendall, (start[500:],))
    later.start()
    assert connection.first().config == {"model": "m" * 1000}
    later.join()


async def test_a_server_that_has_gone_is_noticed_by_who_reads_and_by_who_writes(
    ends: tuple[socket.socket, Connection],
) -> None:
    server, connection = ends
    server.close()
    step = frames.Step(EngineStats(), 0)
    with pytest.raises(Closed):
        connection.receive()
    with pytest.raises(Closed):
        connection.send(step)
    connection.socket.setblocking(False)
    with pytest.raises(Closed):
        await connection.send_async(step)


def test_a_server_that_has_gone_with_something_unread_has_gone(ends: tuple[socket.socket, Connection]) -> None:
    server, connection = ends
    connection.send(frames.Step(EngineStats(), 0))
    server.close()
    with pytest.raises(Closed):
        connection.receive()


def test_a_server_that_says_what_is_no_message_is_out_of_order(ends: tuple[socket.socket, Connection]) -> None:
    server, connection = ends
    server.sendall(frames.frame(SENT[0]) + GARBAGE["a length of 3 GB"])
    with pytest.raises(frames.Unreadable, match="3221225472"):
        connection.receive()
