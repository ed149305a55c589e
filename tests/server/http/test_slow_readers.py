"""Clients that open streams and do not read them: what they cost, and what it costs others."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from server.http.sse import MOST_UNSENT
from tests.server.process import ServerProcess
from tests.until import PATIENCE, until

UNREAD = 4
MESSAGE = {"role": "user", "content": "hello"}
LONG = {"model": "echo", "messages": [MESSAGE], "stream": True, "logprobs": True, "top_logprobs": 20}
LONG |= {"n": 128, "max_tokens": 3000, "ignore_eos": True}
SLACK = 30 << 20
"""Bytes for what Python's allocator keeps, and for four requests that run."""


@contextmanager
def unread(url: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A stream that was asked for, and of which nothing has been read."""
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        content = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        yield client


def metrics(http: httpx.Client) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {(s.name, s.labels.get("reason", "")): s.value for family in families for s in family.samples}


def test_streams_that_nobody_reads_are_ended_and_take_little_memory(start_echo: Callable[..., ServerProcess]) -> None:
    server = start_echo(params={"verbose": False})
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        until(server.is_ready)
        http.post("/v1/chat/completions", json={**LONG, "max_tokens": 8})
        process = psutil.Process(server.pid)
        before = process.memory_info().rss
        with (
            unread(server.url, LONG) as first,
            unread(server.url, LONG),
            unread(server.url, LONG),
            unread(server.url, LONG),
        ):
            grown = [0]

            def all_are_ended() -> bool:
                grown[0] = max(grown[0], process.memory_info().rss - before)
                counts = metrics(http)
                return counts.get(("tuneserve:connections_ended_total", "slow_reader"), 0) >= UNREAD

            until(lambda: metrics(http)["tuneserve:connections", ""] == UNREAD + 1)
            until(all_are_ended)
            until(lambda: metrics(http)["tuneserve:num_requests_running", ""] == 0)
            answer = http.post("/v1/chat/completions", json={"model": "echo", "messages": [MESSAGE]})
            assert answer.json()["choices"][0]["message"]["content"] == "hello"
            assert grown[0] < UNREAD * MOST_UNSENT + SLACK

            text = b""
            while piece := first.recv(1 << 20):
                text += piece
                if text.endswith(b"0\r\n\r\n"):
                    break
        *_, error, done, _ = text.split(b"\n\n")
        assert json.loads(error.rpartition(b"data: ")[2])["error"]["code"] == "slow_reader"
        assert done == b"data: [DONE]"
        until(lambda: "The stream was not read" in "".join(server.log))
        assert "Traceback" not in "".join(server.log)
