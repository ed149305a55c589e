"""Messages over a socket, however it cuts them."""

import socket
import threading
from collections.abc import Iterator

import pytest

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
