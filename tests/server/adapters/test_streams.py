"""Adapters that change under running streams: each stream ends with the version that it began with."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.adapter_folders import write_adapter
from tests.server.api import Api, api_of
from tests.server.process import ServerProcess
from tests.until import until

TEXT = "abcdefgh"
ENDLESS = {"ignore_eos": True, "max_tokens": 4000}
"""The answer over and over, for minutes."""


def states(api: Api) -> dict[str, str]:
    """State of each version."""
    return {adapter["version"]: adapter["state"] for adapter in api.adapters.all()}


def in_flight(api: Api) -> int:
    return sum(adapter["in_flight"] for adapter in api.adapters.all())


def loaded(api: Api, name: str, path: str, **fields: Any) -> str:
    """The version that is loaded."""
    version: str = api.adapters.create(name, path, **fields)["version"]
    return version


@pytest.fixture
def start(start_echo: Callable[..., ServerProcess], tmp_path: Path) -> Callable[..., ServerProcess]:
    """Starts a server that may load the adapters a and b, and waits until it is ready."""
    for seed, name in enumerate("ab"):
        write_adapter(tmp_path / "root" / name, seed=seed)
    params = {"adapter_roots": [str(tmp_path / "root")], "state_dir": str(tmp_path / "state"), "verbose": False}

    def start(**faults: float) -> ServerProcess:
        server = start_echo(params=params, faults=faults)
        until(server.is_ready)
        return server

    return start


@pytest.fixture
def api(start: Callable[..., ServerProcess]) -> Iterator[Api]:
    """A server whose tokens take so long that a test can act between two of them."""
    with api_of(start(token_delay=0.03)) as api:
        yield api


def test_an_alias_is_repointed_under_a_running_stream(api: Api) -> None:
    a, b = loaded(api, "a", "a"), loaded(api, "b", "b")
    api.adapters.alias("stable", "a").raise_for_status()
    with api.streaming("stable", TEXT) as first:
        api.adapters.alias("stable", "b").raise_for_status()
        with api.streaming("stable", TEXT) as second:
            assert "".join(second) == f"{b}: {TEXT}"
        assert "".join(first) == f"{a}: {TEXT}"


def test_an_adapter_is_replaced_under_a_running_stream(api: Api) -> None:
    old = loaded(api, "sql", "a")
    with api.streaming("sql", TEXT, **ENDLESS) as running:
        new = loaded(api, "sql", "b", replace=True)
        assert new != old
        assert states(api)[old] == "draining"
        assert api.answer("sql", TEXT) == f"{new}: {TEXT}"
        assert "".join(islice(running, 50)) == (f"{old}: {TEXT}" * 50)[:50]
    until(lambda: states(api).keys() == {new})


def test_an_adapter_is_unloaded_under_a_running_stream(api: Api) -> None:
    version = loaded(api, "sql", "a")
    with api.streaming("sql", TEXT, **ENDLESS) as running:
        api.adapters.unload("sql").raise_for_status()
        assert api.refused_chat(model="sql").status == 404
        assert states(api) == {version: "draining"}
        assert "".join(islice(running, 50)) == (f"{version}: {TEXT}" * 50)[:50]
    until(lambda: not states(api))


def test_a_client_that_leaves_a_stream_lets_its_adapter_go(api: Api) -> None:
    loaded(api, "sql", "a")
    with api.streaming("sql", TEXT, **ENDLESS):
        assert in_flight(api) == 1
        api.adapters.unload("sql").raise_for_status()
    until(lambda: not states(api))


def test_a_client_that_stops_waiting_for_a_whole_answer_lets_its_adapter_go(api: Api) -> None:
    loaded(api, "sql", "a")
    body = {"model": "sql", "messages": [{"role": "user", "content": TEXT}], **ENDLESS}
    with pytest.raises(httpx2.ReadTimeout):
        api.http.post("/v1/chat/completions", json=body, timeout=0.5)
    until(lambda: in_flight(api) == 0)


CHANGES = 100


def test_no_request_fails_or_mixes_versions_while_adapters_come_and_go(start: Callable[..., ServerProcess]) -> None:
    server, done = start(token_delay=0.001), threading.Event()

    def ask() -> set[str]:
        """All answers by `sql` and its alias, whole and streamed, until the changes are done."""
        answers: set[str] = set()
        with api_of(server) as api:
            while not done.is_set():
                answers.add(api.answer("sql", TEXT))
                with api.streaming("stable", TEXT, max_tokens=4000) as pieces:
                    answers.add("".join(pieces))
        return answers

    with api_of(server) as api, ThreadPoolExecutor() as pool:
        versions = {loaded(api, "sql", path, replace=True) for path in "ab"}
        api.adapters.alias("stable", "sql").raise_for_status()
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            for change in range(CHANGES):
                loaded(api, "sql", "ab"[change % 2], replace=True)
                loaded(api, "passing", "a")
                api.adapters.alias("other", "passing").raise_for_status()
                api.adapters.unload("other").raise_for_status()
                api.adapters.unload("passing").raise_for_status()
        finally:
            done.set()
        answers = set().union(*(future.result() for future in asking))
        until(lambda: len(states(api)) == 1 and in_flight(api) == 0)
    assert len(versions) == 2
    assert answers == {f"{version}: {TEXT}" for version in versions}
