"""What connections cost that bring no request: idle ones, and a sender of headers without end.

`python -m benchmarks.connections --model FOLDER` starts a server and prints its memory and how long `/health` takes
before and under them. Any model does: none of it reaches one.
"""

import argparse
import http.client
import multiprocessing
import select
import socket
import statistics
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import psutil

from benchmarks.process import MIB, Tree
from benchmarks.report import say
from benchmarks.servers import TUNESERVE

IDLE = 200
SECONDS = 10
PROBE_PAUSE = 0.01
START_SECONDS = 120
URL_BYTES = 17 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, default=8125)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Tree(_command(given.model, given.port, folder), {}, Path(folder) / "server.log") as tree,
    ):
        _wait(given.port)
        _measure(given.port, psutil.Process(tree.process.pid))


def _command(model: str, port: int, folder: str) -> list[str]:
    words = ("--model", model, "--host", "127.0.0.1", "--port", str(port), "--state_dir", f"{folder}/state")
    return [sys.executable, "-c", TUNESERVE, "deploy", *words]


def _wait(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"the server was not ready after {START_SECONDS} s")


def _measure(port: int, server: psutil.Process) -> None:
    _probe(port, 1)
    before = server.memory_info().rss
    _tell("alone", _probe(port, SECONDS), 0)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(IDLE)]
    _tell(f"{IDLE} idle connections", _probe(port, SECONDS), server.memory_info().rss - before)
    stop = multiprocessing.Event()
    refusals: multiprocessing.Queue[tuple[float, str]] = multiprocessing.Queue()
    sender = multiprocessing.Process(target=_send_without_end, args=(port, stop, refusals), daemon=True)
    sender.start()
    took = _probe(port, SECONDS)
    after = server.memory_info().rss - before
    stop.set()
    sender.join()
    _tell("and headers without end", took, after)
    told = [refusals.get() for _ in range(refusals.qsize())]
    longest = max(seconds for seconds, _ in told) * 1000
    say(f"refused {len(told)} times: {told[0][1]} after {longest:.1f} ms at most")
    seconds, status = _send(port, b"GET /" + b"x" * URL_BYTES, stop=None)
    say(f"a URL of {URL_BYTES >> 20} MiB: {status} after {seconds * 1000:.1f} ms")
    for each in idle:
        each.close()


def _send_without_end(port: int, stop: Event, refusals: "multiprocessing.Queue[tuple[float, str]]") -> None:
    while not stop.is_set():
        refusals.put(_send(port, b"GET / HTTP/1.1\r\nX: ", stop=stop))


def _send(port: int, head: bytes, stop: Event | None) -> tuple[float, str]:
    """Seconds until the first line of an answer comes, and its status. With `stop`, headers are sent for as long as
    the server takes them."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        began = time.perf_counter()
        connection.settimeout(0.01)
        told, seconds = b"", 0.0
        piece = memoryview(head)
        try:
            while stop is None or not stop.is_set():
                if piece:
                    piece = piece[_sent(connection, piece) :]
                elif stop is not None:
                    piece = memoryview(b"x" * (256 << 10))
                told += _received(connection)
                if told and not seconds:
                    seconds = time.perf_counter() - began
                    if stop is None:
                        break
        except OSError:
            pass
    return seconds, told.partition(b"\r\n")[0].decode()


def _sent(connection: socket.socket, piece: memoryview) -> int:
    try:
        return connection.send(piece)
    except TimeoutError:
        return 0


def _received(connection: socket.socket) -> bytes:
    if not select.select([connection], [], [], 0)[0]:
        return b""
    return connection.recv(4096)


def _probe(port: int, seconds: float) -> list[float]:
    """How long `/health` took, each on a connection of its own."""
    took = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        took.append(time.perf_counter() - began)
        connection.close()
        time.sleep(PROBE_PAUSE)
    return took


def _tell(what: str, took: list[float], more_bytes: int) -> None:
    p50, p99 = (statistics.quantiles(took, n=100)[at] * 1000 for at in (49, 98))
    health = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {max(took) * 1000:.1f} ms"
    say(f"{what}: {more_bytes / MIB:+.1f} MiB; /health {health}")


if __name__ == "__main__":
    main()
