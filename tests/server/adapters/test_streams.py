"""Adapters that change under running streams: each stream ends with the version that it began with."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.adapter_folders import write_adapter
from tests.server.process import ServerProcess
from tests.until import until

TEXT = "abcdefgh"
ENDLESS = {"ignore_eos": True, "max_tokens": 4000}
"""The answer over and over, for minutes."""


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
        """The stream's pieces of text, once it has begun: the first piece, which names the role, has none."""
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
def start(start_echo: Callable[..., ServerProcess], tmp_path: Path) -> Callable[..., ServerProcess]:
    """Starts a server that may load the adapters a and b, and waits until it is ready."""
    for seed, name in enumerate("ab"):
        write_adapter(tmp_path / "root" / name, seed=seed)
    params = {"adapter_roots": [str(tmp_path / "root")], "state_dir": str(tmp_path / "state"), "verbose": False}

    def start(**faults: float) -> ServerProcess:
        server = start_echo(params=params, faults=faults)
        until(lambda: httpx.get(f"{server.url}/ready", timeout=60).status_code == 200)
        return server

    return start


@pytest.fixture
def client(start: Callable[..., ServerProcess]) -> Iterator[Client]:
    """Of a server whose tokens take so long that a test can act between two of them."""
    with httpx.Client(base_url=start(token_delay=0.03).url, timeout=60) as http:
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
    with client.stream("sql", **ENDLESS) as running:
        new = client.load("sql", "b", replace=True)
        assert new != old
        assert client.states()[old] == "draining"
        assert client.answer("sql") == f"{new}: {TEXT}"
        assert "".join(islice(running, 50)) == (f"{old}: {TEXT}" * 50)[:50]
    until(lambda: client.states().keys() == {new})


def test_an_adapter_is_unloaded_under_a_running_stream(client: Client) -> None:
    version = client.load("sql", "a")
    with client.stream("sql", **ENDLESS) as running:
        client.post("/v1/unload_lora_adapter", lora_name="sql")
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            client.answer("sql")
        assert client.states() == {version: "draining"}
        assert "".join(islice(running, 50)) == (f"{version}: {TEXT}" * 50)[:50]
    until(lambda: not client.states())


def test_a_client_that_leaves_a_stream_lets_its_adapter_go(client: Client) -> None:
    client.load("sql", "a")
    with client.stream("sql", **ENDLESS):
        assert client.in_flight() == 1
        client.post("/v1/unload_lora_adapter", lora_name="sql")
    until(lambda: not client.states())


def test_a_client_that_stops_waiting_for_a_whole_answer_lets_its_adapter_go(client: Client) -> None:
    client.load("sql", "a")
    body = {"model": "sql", "messages": [{"role": "user", "content": TEXT}], **ENDLESS}
    with pytest.raises(httpx.ReadTimeout):
        client.http.post("/v1/chat/completions", json=body, timeout=0.5)
    until(lambda: client.in_flight() == 0)


CHANGES = 100


def test_no_request_fails_or_mixes_versions_while_adapters_come_and_go(start: Callable[..., ServerProcess]) -> None:
    server, done = start(token_delay=0.001), threading.Event()

    def ask() -> set[str]:
        """All answers by `sql` and its alias, whole and streamed, until the changes are done."""
        answers: set[str] = set()
        with httpx.Client(base_url=server.url, timeout=60) as http:
            client = Client(http)
            while not done.is_set():
                answers.add(client.answer("sql"))
                with client.stream("stable", max_tokens=4000) as pieces:
                    answers.add("".join(pieces))
        return answers

    with httpx.Client(base_url=server.url, timeout=60) as http, ThreadPoolExecutor() as pool:
        client = Client(http)
        versions = {client.load("sql", path, replace=True) for path in "ab"}
        client.post("/v1/adapters/stable/alias", target="sql")
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            for change in range(CHANGES):
                client.load("sql", "ab"[change % 2], replace=True)
                client.load("passing", "a")
                client.post("/v1/adapters/other/alias", target="passing")
                client.post("/v1/unload_lora_adapter", lora_name="other")
                client.post("/v1/unload_lora_adapter", lora_name="passing")
        finally:
            done.set()
        answers = set().union(*(future.result() for future in asking))
        until(lambda: len(client.states()) == 1 and client.in_flight() == 0)
    assert len(versions) == 2
    assert answers == {f"{version}: {TEXT}" for version in versions}
