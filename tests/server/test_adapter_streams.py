"""Adapters that change under running streams: each stream ends with the version that it began with."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.adapter_folders import write_adapter
from tests.server.process import ServerProcess

TEXT = "abcdefgh"


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that is to happen soon, a minute at most."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


class Client:
    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def post(self, path: str, /, **body: Any) -> httpx.Response:
        reply = self.http.post(path, json=body)
        reply.raise_for_status()
        return reply

    def load(self, name: str, path: str, **fields: Any) -> str:
        """The version that was loaded."""
        version: str = self.post("/v1/adapters", name=name, path=path, **fields).json()["version"]
        return version

    def states(self) -> dict[str, str]:
        """Of each version."""
        adapters = self.http.get("/v1/adapters").json()["data"]
        return {adapter["version"]: adapter["state"] for adapter in adapters}

    def in_flight(self) -> int:
        return sum(adapter["in_flight"] for adapter in self.http.get("/v1/adapters").json()["data"])

    @contextmanager
    def stream(self, model: str, **fields: Any) -> Iterator[Iterator[str]]:
        """The stream's pieces of text, after the first has come."""
        body = {"model": model, "messages": [{"role": "user", "content": TEXT}], "stream": True, **fields}
        with self.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            assert reply.status_code == 200
            pieces = _texts(reply.iter_lines())
            next(pieces)
            yield pieces

    def answer(self, model: str) -> str:
        messages = [{"role": "user", "content": TEXT}]
        reply = self.post("/v1/chat/completions", model=model, messages=messages)
        text: str = reply.json()["choices"][0]["message"]["content"]
        return text


def _texts(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            yield event["choices"][0]["delta"].get("content", "")


@pytest.fixture
def client(start_echo: Callable[..., ServerProcess], tmp_path: Path) -> Iterator[Client]:
    """A server whose tokens take so long that a test can act between two of them."""
    for seed, name in enumerate("ab"):
        write_adapter(tmp_path / "root" / name, seed=seed)
    params = {"adapter_roots": [str(tmp_path / "root")], "state_dir": str(tmp_path / "state"), "verbose": False}
    server = start_echo(params=params, faults={"token_delay": 0.05})
    with httpx.Client(base_url=server.url, timeout=60) as http:
        until(lambda: http.get("/ready").status_code == 200)
        yield Client(http)


def test_an_alias_is_repointed_under_a_running_stream(client: Client) -> None:
    a, b = client.load("a", "a"), client.load("b", "b")
    client.post("/v1/adapters/stable/alias", target="a")
    with client.stream("stable") as first:
        client.post("/v1/adapters/stable/alias", target="b")
        with client.stream("stable") as second:
            assert "".join(second) == f"{b}: {TEXT}"
        assert "".join(first) == f"{a}: {TEXT}"


def test_an_adapter_is_replaced_under_a_running_stream(client: Client) -> None:
    old = client.load("sql", "a")
    with client.stream("sql") as running:
        new = client.load("sql", "b", replace=True)
        assert new != old
        assert client.states()[old] == "draining"
        assert client.answer("sql") == f"{new}: {TEXT}"
        assert "".join(running) == f"{old}: {TEXT}"
    until(lambda: client.states().keys() == {new})


def test_an_adapter_is_unloaded_under_a_running_stream(client: Client) -> None:
    version = client.load("sql", "a")
    with client.stream("sql") as running:
        client.post("/v1/unload_lora_adapter", lora_name="sql")
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            client.answer("sql")
        assert client.states() == {version: "draining"}
        assert "".join(running) == f"{version}: {TEXT}"
    until(lambda: not client.states())


def test_a_client_that_leaves_a_stream_lets_its_adapter_go(client: Client) -> None:
    client.load("sql", "a")
    with client.stream("sql", ignore_eos=True, max_tokens=4000):
        assert client.in_flight() == 1
        client.post("/v1/unload_lora_adapter", lora_name="sql")
    until(lambda: not client.states())


def test_a_client_that_stops_waiting_for_a_whole_answer_lets_its_adapter_go(client: Client) -> None:
    client.load("sql", "a")
    body = {"model": "sql", "messages": [{"role": "user", "content": TEXT}], "ignore_eos": True, "max_tokens": 4000}
    with pytest.raises(httpx.ReadTimeout):
        client.http.post("/v1/chat/completions", json=body, timeout=0.5)
    until(lambda: client.in_flight() == 0)
