"""The access log: one line for each request but the probes. What a request holds is let go with it."""

import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import StreamingResponse

from tests.server.client import ReadyClient, echo_client
from tests.server.keys import FULL, bearer

LINE = re.compile(r"testclient (?P<name>\S+) (?P<request>\S+ \S+) (?P<status>\d+) \d+\.\d{3}s (?P<id>\S+)")
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "a secret"}], "stream": True}


@pytest.fixture
def client_of(caplog: pytest.LogCaptureFixture) -> Callable[..., ReadyClient]:
    """Makes a client of a server of its own; its access log is in `caplog`."""
    caplog.set_level(logging.INFO, logger="server.access")

    def make(**params: Any) -> ReadyClient:
        client = echo_client(raise_server_exceptions=False, **params)

        @client.app.get("/bug")
        async def bug() -> None:
            raise RuntimeError

        return client

    return make


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "server.access"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/version", None, 200),
        ("POST", "/v1/chat/completions", CHAT, 200),
        ("POST", "/v1/chat/completions", {}, 400),
        ("GET", "/v1/models", None, 401),
        ("GET", "/nope", None, 404),
        ("GET", "/bug", None, 500),
    ],
)
def test_every_request_is_a_line_with_its_status_and_id(
    client_of: Callable[..., ReadyClient],
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    status: int,
) -> None:
    with client_of(api_key=[f"team={FULL}"]) as client:
        headers = {"x-request-id": "mine"} | ({} if status == 401 else bearer(FULL))
        assert client.request(method, path, json=body, headers=headers).status_code == status
    (line,) = lines(caplog)
    found = LINE.fullmatch(line)
    assert found and found["request"] == f"{method} {path}"
    assert (int(found["status"]), found["id"]) == (status, "mine")
    assert found["name"] == ("-" if status == 401 else "team")


@pytest.mark.parametrize("path", ["/health", "/ping", "/ready", "/metrics"])
def test_what_machines_ask_all_the_time_is_no_line(
    client_of: Callable[..., ReadyClient], caplog: pytest.LogCaptureFixture, path: str
) -> None:
    with client_of() as client:
        client.get(path)
    assert lines(caplog) == []


def test_a_request_without_an_id_is_logged_under_the_one_that_it_was_given(
    client_of: Callable[..., ReadyClient], caplog: pytest.LogCaptureFixture
) -> None:
    with client_of() as client:
        given = client.get("/version").headers["x-request-id"]
    assert lines(caplog)[0].endswith(f" {given}")


def test_what_a_client_writes_cannot_forge_a_line_or_tell_a_secret(
    client_of: Callable[..., ReadyClient], caplog: pytest.LogCaptureFixture
) -> None:
    with client_of(api_key=[FULL]) as client:
        headers = bearer(FULL)
        client.get("/a%0a127.0.0.1 GET /forged%1b[31m" + "x" * 5000, params={"token": "hidden"}, headers=headers)
        client.post("/v1/chat/completions", json=CHAT, headers=headers)
    for line in lines(caplog):
        assert line.isprintable() and len(line) < 400
        assert not any(word in line for word in ("secret", "hidden", "Bearer", FULL))


def test_a_server_told_to_be_quiet_logs_no_requests(
    client_of: Callable[..., ReadyClient], caplog: pytest.LogCaptureFixture
) -> None:
    with client_of(verbose=False) as client:
        client.get("/version")
    assert lines(caplog) == []


def test_what_a_request_holds_is_let_go_once_its_answer_has_ended() -> None:
    client = echo_client(raise_server_exceptions=False)
    story: list[str] = []

    @client.app.get("/hold/{how}")
    async def hold(how: str, request: Request) -> StreamingResponse:
        request.state.answered.callback(story.append, "let go")
        if how == "fails":
            raise RuntimeError
        return StreamingResponse(pieces())

    async def pieces() -> AsyncIterator[str]:
        yield "a"
        story.append("sent")

    for how in ("streams", "fails"):
        client.get(f"/hold/{how}")
    assert story == ["sent", "let go", "let go"]


@pytest.mark.parametrize(("address", "status"), [("/v1/files/a%00b", 404), ("/v1/files?after=a%00b", 400)])
def test_a_nul_in_an_address_is_the_clients_fault(
    client_of: Callable[..., ReadyClient], address: str, status: int
) -> None:
    with client_of() as client:
        answer = client.get(address)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")
