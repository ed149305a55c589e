"""Clients that go away, and servers that do: what happens to the requests between them."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.http.connections.server import AGAIN_SECONDS
from tests.server.process import ServerProcess
from tests.until import until

TEXT = "abcdefgh" * 5


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": TEXT}], **fields}


def running(client: httpx.Client) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return next(f.samples[0].value for f in families if f.name == "tuneserve:num_requests_running")


@contextmanager
def stream(client: httpx.Client, **fields: Any) -> Iterator[Iterator[str]]:
    """An open stream, after its first token."""
    with client.stream("POST", "/v1/chat/completions", json=chat(stream=True, **fields)) as reply:
        assert reply.status_code == 200
        lines = (line for line in reply.iter_lines() if line)
        next(lines)
        yield lines


@pytest.fixture
def slow(start_echo: Callable[..., ServerProcess]) -> Iterator[tuple[ServerProcess, httpx.Client]]:
    """A server whose tokens take so long that a test can act between two of them."""
    server = start_echo(faults={"token_delay": 0.1}, params={"shutdown_timeout": 30})
    with httpx.Client(base_url=server.url, timeout=60) as client:
        until(lambda: client.get("/ready").status_code == 200)
        yield server, client


def test_a_client_that_leaves_a_stream_ends_its_generation(slow: tuple[ServerProcess, httpx.Client]) -> None:
    _, client = slow
    with stream(client, ignore_eos=True, max_tokens=4000, n=2):
        assert running(client) == 1
    until(lambda: running(client) == 0)


def test_a_client_that_stops_waiting_for_a_whole_answer_ends_its_generation(
    slow: tuple[ServerProcess, httpx.Client],
) -> None:
    _, client = slow
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=chat(ignore_eos=True, max_tokens=4000), timeout=0.5)
    until(lambda: running(client) == 0)


def test_on_sigterm_running_requests_finish_and_new_ones_are_sent_away(
    slow: tuple[ServerProcess, httpx.Client],
) -> None:
    server, client = slow
    with stream(client) as lines:
        server.signal(signal.SIGTERM)
        until(lambda: client.get("/ready").status_code == 503)
        reply = client.post("/v1/chat/completions", json=chat())
        assert reply.status_code == 503 and int(reply.headers["retry-after"]) > 0
        assert client.get("/health").status_code == 200
        *chunks, done = lines
    deltas = [json.loads(chunk.removeprefix("data: "))["choices"][0] for chunk in chunks]
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == TEXT
    assert deltas[-1]["finish_reason"] == "stop" and done == "data: [DONE]"
    assert server.wait() == 0


def test_what_does_not_finish_within_the_grace_time_ends_with_an_error(
    start_echo: Callable[..., ServerProcess],
) -> None:
    server = start_echo(faults={"token_delay": 0.1}, params={"shutdown_timeout": 0.3})
    whole: list[httpx.Response] = []
    with httpx.Client(base_url=server.url, timeout=60) as client:
        until(lambda: client.get("/ready").status_code == 200)
        endless = {"ignore_eos": True, "max_tokens": 4000}
        waiting = threading.Thread(
            target=lambda: whole.append(client.post("/v1/chat/completions", json=chat(**endless)))
        )
        waiting.start()
        with stream(client, **endless) as lines:
            until(lambda: running(client) == 2)
            server.signal(signal.SIGTERM)
            *_, error, done = lines
        waiting.join()
    streamed = json.loads(error.removeprefix("data: "))
    assert (streamed["error"]["type"], streamed["error"]["code"]) == ("server_error", "service_unavailable")
    assert done == "data: [DONE]"
    assert (whole[0].status_code, whole[0].json()) == (503, streamed)
    assert server.wait() == 0
    assert "Traceback" not in "".join(server.log)


def test_a_signal_that_is_sent_twice_still_has_the_stream_end_in_order(
    start_echo: Callable[..., ServerProcess],
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        server = start_echo(faults={"token_delay": 0.1}, params={"shutdown_timeout": 30})
        with httpx.Client(base_url=server.url, timeout=60) as client:
            until(lambda: client.get("/ready").status_code == 200)
            with stream(client) as lines:
                server.signal(number)
                server.signal(number)  # as `timeout` does: to the process, and to its group
                until(lambda: client.get("/ready").status_code == 503)
                *chunks, done = lines
        assert json.loads(chunks[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "stop"
        assert done == "data: [DONE]"
        assert server.wait() == 0


def test_sigterm_never_cuts_the_drain_short_and_a_later_ctrl_c_does(slow: tuple[ServerProcess, httpx.Client]) -> None:
    server, client = slow
    with stream(client, ignore_eos=True, max_tokens=4000) as lines:
        server.signal(signal.SIGTERM)
        until(lambda: client.get("/ready").status_code == 503)
        time.sleep(AGAIN_SECONDS)
        server.signal(signal.SIGTERM)
        assert [next(lines) for _ in range(20)], "two seconds' worth"
        server.signal(signal.SIGINT)
        assert server.wait() == 1


def test_comments_keep_a_slow_stream_alive_even_before_its_first_token(
    start_echo: Callable[..., ServerProcess],
) -> None:
    server = start_echo(faults={"token_delay": 1}, params={"sse_keep_alive_interval": 0.05})
    with httpx.Client(base_url=server.url, timeout=60) as client:
        until(lambda: client.get("/ready").status_code == 200)
        text = client.post("/v1/chat/completions", json=chat(stream=True, max_tokens=2)).text
    first, *_ = text.split("data: ", 1)
    assert first.startswith(": keep-alive\n\n")
    assert text.endswith("data: [DONE]\n\n") and text.count(": keep-alive") > first.count(": keep-alive")


def test_a_full_queue_and_a_dying_engine_are_told_before_and_within_the_stream(
    start_echo: Callable[..., ServerProcess],
) -> None:
    server = start_echo(faults={"token_delay": 0.1, "die_after": 40}, engine={"max_requests": 1})
    with httpx.Client(base_url=server.url, timeout=60) as client:
        until(lambda: client.get("/ready").status_code == 200)
        with stream(client) as lines:
            reply = client.post("/v1/chat/completions", json=chat(stream=True))
            assert (reply.status_code, reply.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert int(reply.headers["retry-after"]) > 0
            *_, error, done = lines
        assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
        assert done == "data: [DONE]"
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
