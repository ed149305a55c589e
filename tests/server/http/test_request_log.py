"""Whatever is logged for a request names it: the access log, the server's errors, and the engine's process."""

import logging
from collections.abc import Callable

import httpx

from engines.logs import RequestFilter, about
from tests.server.process import ServerProcess
from tests.until import until

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


def test_the_access_log_and_the_engines_log_name_the_same_request(start_echo: Callable[..., ServerProcess]) -> None:
    server = start_echo(hosted=True, faults={"bug": True})
    until(server.is_ready)
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine"})
    assert reply.status_code == 500
    server.signal()
    server.wait()
    lines = [line.strip() for line in server.log if "mine" in line]
    assert any(" engines.process" in line and "a request failed [mine]" in line for line in lines)
    assert any("server.http.errors: Request mine failed: " in line for line in lines)
    assert any("server.access: " in line and line.endswith("mine") for line in lines)


def test_only_what_is_logged_for_a_request_names_one() -> None:
    def logged() -> str:
        record = logging.makeLogRecord({})
        RequestFilter().filter(record)
        return str(vars(record)["about"])

    with about("mine"):
        assert logged() == " [mine]"
    assert logged() == ""
