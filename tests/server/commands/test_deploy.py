"""A server process from its first breath to its last: ports, start, signals, drain."""

import signal
import socket
from collections.abc import Callable

import httpx

from tests.server.process import ServerProcess
from tests.until import until


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
    open_server, locked = start_echo(), start_echo(params={"api_key": ["secret"]})
    for server in (open_server, locked):
        until_ready(server.url)
        server.signal()
        server.wait()
    assert "".join(open_server.log).count("No api_key is set") == 1
    assert "No api_key is set" not in "".join(locked.log)
    assert "secret" not in "".join(locked.log)
