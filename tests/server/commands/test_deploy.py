"""A server process from its first breath to its last: ports, start, signals, drain."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from engines.errors import UnsupportedModel
from engines.params.deploy import DeployParams
from server.commands import deploy
from server.http.keys.keys import Keys
from tests.server.keys import ASK, FULL, TEACH, bearer
from tests.server.process import ServerProcess
from tests.until import until


@pytest.fixture
def start() -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers that may refuse to start."""
    with contextlib.ExitStack() as stack:

        def run(**params: Any) -> ServerProcess:
            server = ServerProcess.echo(params=params)
            stack.callback(server.close)
            return server

        yield run


def until_ready(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        until(lambda: client.get("/ready").status_code == 200)


def test_a_signal_ends_an_idle_server_with_status_0(start_echo: Callable[..., ServerProcess]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        server = start_echo()
        until_ready(server.url)
        server.signal(number)
        assert server.wait() == 0


def test_a_taken_port_is_an_error_and_never_another_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = ServerProcess.echo(params={"port": port})
        try:
            assert server.wait() == 1
            assert f"port {port} is taken" in "".join(server.log)
        finally:
            server.close()


def test_the_server_listens_while_the_engine_starts(start_echo: Callable[..., ServerProcess]) -> None:
    server = start_echo(faults={"start_delay": 60})
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/metrics").status_code == 200
        reply = client.get("/ready")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "service_unavailable")
    assert int(reply.headers["retry-after"]) > 0


def test_a_server_that_is_told_to_stop_while_it_starts_stops(start_echo: Callable[..., ServerProcess]) -> None:
    server = start_echo(faults={"start_delay": 60})
    assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
    server.signal()
    assert server.wait() == 0


def test_an_engine_that_cannot_start_ends_the_process_with_its_message(
    start_echo: Callable[..., ServerProcess],
) -> None:
    server = start_echo(faults={"start_delay": 0.5, "start_error": "there is no memory left"})
    assert server.wait() == 1
    assert "there is no memory left" in "".join(server.log)


def test_without_a_key_there_is_one_warning(start_echo: Callable[..., ServerProcess]) -> None:
    open_server, locked = start_echo(), start_echo(params={"api_key": ["secret-0123456789abcdef"]})
    for server in (open_server, locked):
        until_ready(server.url)
        server.signal()
        server.wait()
    assert "".join(open_server.log).count("No key is set: every user of this machine may") == 1
    assert "No key is set" not in "".join(locked.log)
    assert "0123456789abcdef" not in "".join(locked.log)


def test_sighup_reads_the_keys_again_and_ends_no_server(
    start_echo: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(FULL)
    keyed, open_server = start_echo(params={"api_key_file": str(file)}), start_echo()
    until(keyed.is_ready)
    with httpx.Client(base_url=keyed.url, timeout=60) as client:

        def status(key: str) -> int:
            return client.get("/v1/models", headers=bearer(key)).status_code

        assert (status(FULL), status(ASK)) == (200, 401)
        file.write_text(f"asks=infer:{ASK}\n")
        keyed.signal(signal.SIGHUP)
        until(lambda: status(ASK) == 200)
        assert status(FULL) == 401
        file.write_text("infer:\n")
        keyed.signal(signal.SIGHUP)
        until(lambda: "The keys stay as they were" in "".join(keyed.log))
        assert status(ASK) == 200
    open_server.signal(signal.SIGHUP)
    until(lambda: "no --api_key_file" in "".join(open_server.log))
    assert httpx.get(f"{open_server.url}/health", timeout=60).status_code == 200
    assert FULL not in "".join(keyed.log) and ASK not in "".join(keyed.log)


def test_keys_may_change_while_the_model_is_loaded_and_no_other_process_sees_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(FULL)
    monkeypatch.setenv("TUNESERVE_API_KEY", TEACH)
    seen: list[Keys] = []

    def load(params: DeployParams, keys: Keys) -> NoReturn:
        assert "TUNESERVE_API_KEY" not in os.environ
        (tmp_path / "keys").write_text(ASK)
        signal.raise_signal(signal.SIGHUP)
        seen.append(keys)
        raise UnsupportedModel("none is needed")

    monkeypatch.setattr(deploy, "load", load)
    before = signal.getsignal(signal.SIGHUP)
    try:
        assert deploy.run(DeployParams(port=0, api_key_file=str(tmp_path / "keys"))) == 1
    finally:
        signal.signal(signal.SIGHUP, before)
    (keys,) = seen
    assert keys.find(ASK) and keys.find(TEACH) and not keys.find(FULL)


def test_a_wrong_key_stops_the_start_with_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for words, reason in (
        (["--api_key", "infer:"], "key 1 of --api_key is empty"),
        (["--api_key_file", str(tmp_path / "nope")], "cannot read --api_key_file"),
        ([], "key 2 of TUNESERVE_API_KEY is shorter than 16 characters"),
    ):
        monkeypatch.setenv("TUNESERVE_API_KEY", "" if words else f"{FULL},abc")
        server = ServerProcess.deploy("--model", str(tmp_path), "--state_dir", str(tmp_path), *words)
        try:
            assert server.wait() == 1
            (line,) = server.log
            assert reason in line
        finally:
            server.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_a_server_for_other_machines_needs_a_key_or_a_word_that_it_needs_none(
    start: Callable[..., ServerProcess], host: str
) -> None:
    refused = start(host=host)
    assert refused.wait() == 1
    (line,) = refused.log
    assert all(word in line for word in ("--api_key or", "--api_key_file", "--allow_anonymous true"))
    anonymous, keyed = start(host=host, allow_anonymous=True), start(host=host, api_key=[FULL])
    until(lambda: "everybody who reaches this address may use the server" in "".join(anonymous.log))
    until(lambda: "Listening on" in "".join(keyed.log))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "::1", "localhost"])
def test_this_machine_may_connect_without_a_key(start: Callable[..., ServerProcess], host: str) -> None:
    server = start(host=host)
    until(lambda: "No key is set: every user of this machine may use the server" in "".join(server.log))


def test_keys_and_a_word_that_none_is_needed_contradict_each_other(start: Callable[..., ServerProcess]) -> None:
    server = start(api_key=[FULL], allow_anonymous=True)
    assert server.wait() == 1
    assert "--allow_anonymous true" in "".join(server.log)
