"""The engine is put to sleep, and woken up, over HTTP."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.server.process import ServerProcess
from tests.until import until


@pytest.fixture
def client(start_echo: Callable[..., ServerProcess]) -> Iterator[httpx.Client]:
    server = start_echo(faults={"token_delay": 0.05})
    with httpx.Client(base_url=server.url, timeout=60) as client:
        until(lambda: client.get("/ready").status_code == 200)
        yield client


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    message = {"role": "user", "content": "abcdefghij"}
    return client.post("/v1/chat/completions", json={"model": "echo", "messages": [message], **fields})


def test_a_sleeping_engine_turns_requests_away_until_it_is_woken_up(client: httpx.Client) -> None:
    assert client.get("/is_sleeping").json() == {"is_sleeping": False}
    assert client.post("/sleep").json() == {"is_sleeping": True}
    assert client.get("/is_sleeping").json() == {"is_sleeping": True}
    refused = ask(client)
    assert refused.status_code == 503 and refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "service_unavailable"
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
    assert client.post("/sleep", params={"level": 1, "mode": "wait"}).json() == {"is_sleeping": True}
    assert client.post("/wake_up").json() == {"is_sleeping": False}
    assert ask(client).json()["choices"][0]["message"]["content"] == "abcdefghij"


def test_what_runs_is_answered_before_the_engine_sleeps(client: httpx.Client) -> None:
    answers = []
    running = threading.Thread(target=lambda: answers.append(ask(client)))
    running.start()
    while "num_requests_running{" not in (text := client.get("/metrics").text) or 'echo"} 1.0' not in text:
        pass
    assert client.post("/sleep").status_code == 200
    running.join()
    assert answers[0].json()["choices"][0]["message"]["content"] == "abcdefghij"


@pytest.mark.parametrize("query", [{"level": 2}, {"mode": "abort"}])
def test_what_vllm_has_besides_is_refused_by_name(client: httpx.Client, query: dict[str, Any]) -> None:
    refused = client.post("/sleep", params=query)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == next(iter(query))
    assert client.get("/is_sleeping").json() == {"is_sleeping": False}
