"""Errors as Anthropic's clients read them: under /v1/messages, and for requests that bring their header."""

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from engines import errors
from engines.echo import EchoEngine, EchoFaults
from server.http.errors import BodyTooLarge, InsufficientPermissions, InvalidApiKey, TooManyConnections
from tests.server.client import ReadyClient, Response, echo_client
from tests.server.keys import bearer
from tests.until import PATIENCE

ERRORS = [
    (errors.InvalidRequest("no", param="n"), 400, "invalid_request_error"),
    (errors.UnsupportedParameter("no 'n'", param="n"), 400, "invalid_request_error"),
    (InvalidApiKey("no"), 401, "authentication_error"),
    (InsufficientPermissions("no"), 403, "permission_error"),
    (errors.ModelNotFound("no"), 404, "not_found_error"),
    (errors.Conflict("no"), 409, "conflict_error"),
    (BodyTooLarge("no"), 413, "request_too_large"),
    (errors.RateLimited("no", retry_after=7), 429, "rate_limit_error"),
    (errors.EngineFailure("/secret"), 500, "api_error"),
    (RuntimeError("/secret"), 500, "api_error"),
    (errors.StorageFull("no"), 507, "api_error"),
    (errors.QueueFull("no"), 529, "overloaded_error"),
    (errors.EngineUnavailable("no"), 529, "overloaded_error"),
    (TooManyConnections("no"), 529, "overloaded_error"),
]
KEY = "a-key-of-the-tests"
ADMIN = "administrators-key"


@pytest.fixture(scope="module")
def client() -> Iterator[ReadyClient]:
    client = echo_client(max_body_size=0.1, raise_server_exceptions=False)

    @client.app.get("/v1/messages/raise/{number}")
    async def fail(number: int) -> None:
        raise ERRORS[number][0]

    with client:
        yield client


def error_of(reply: Response) -> dict[str, Any]:
    """The error object, after a look at everything that all errors have in common."""
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
    assert body["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    assert set(body["error"]) <= {"type", "message", "details"}
    return body["error"]


@pytest.mark.parametrize("number", range(len(ERRORS)), ids=lambda number: type(ERRORS[number][0]).__name__)
def test_each_error_class_has_anthropics_status_and_type(client: ReadyClient, number: int) -> None:
    error, status, kind = ERRORS[number]
    reply = client.get(f"/v1/messages/raise/{number}")
    assert (reply.status_code, error_of(reply)["type"]) == (status, kind)
    assert ("retry-after" in reply.headers) == (status in (429, 529))
    assert "secret" not in reply.text
    if isinstance(error, errors.TuneserveError) and status != 500:
        assert error_of(reply)["details"] == {"error_code": error.code, "param": error.param}


def test_the_message_begins_with_the_field_unless_it_names_it(client: ReadyClient) -> None:
    assert error_of(client.get("/v1/messages/raise/0"))["message"] == "n: no"
    assert error_of(client.get("/v1/messages/raise/1"))["message"] == "no 'n'"


def test_what_is_refused_before_any_route_has_the_shape_too(client: ReadyClient) -> None:
    missing = client.post("/v1/messages/batches", json={})
    assert (missing.status_code, error_of(missing)["type"]) == (404, "not_found_error")
    wrong = client.post("/v1/messages/raise/1", json={})
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD")
    assert error_of(wrong)["type"] == "invalid_request_error"
    number = client.get("/v1/messages/raise/x")
    assert (number.status_code, error_of(number)["type"]) == (400, "invalid_request_error")
    foreign = client.get("/v1/messages/raise/1", headers={"origin": "https://elsewhere.example"})
    assert (foreign.status_code, error_of(foreign)["type"]) == (403, "permission_error")


def test_other_paths_have_it_where_the_header_of_anthropics_clients_comes(client: ReadyClient) -> None:
    header = {"anthropic-version": "2023-06-01"}
    assert error_of(client.get("/v1/models/nope", headers=header))["type"] == "not_found_error"
    assert error_of(client.get("/nope", headers=header))["type"] == "not_found_error"
    plain = client.get("/v1/models/nope")
    assert list(plain.json()) == ["error"] and "request-id" not in plain.headers
    assert list(client.get("/v1/messagesx").json()) == ["error"]


def test_the_path_of_a_proxy_changes_nothing() -> None:
    with echo_client(root_path="/model") as client:
        for path in ("/v1/messages", "/model/v1/messages"):
            assert error_of(client.post(path, json={}))["type"] == "invalid_request_error"
            assert error_of(client.get(path))["details"]["error_code"] == "method_not_allowed"


def test_a_key_comes_in_either_header() -> None:
    with echo_client(api_key=(f"infer:{KEY}", ADMIN)) as client:

        def status(**headers: str) -> int:
            return client.get(
                "/v1/models", headers={name.replace("_", "-"): key for name, key in headers.items()}
            ).status_code

        assert status(x_api_key=KEY) == status(authorization=f"Bearer {KEY}") == 200
        assert status(x_api_key=KEY, authorization="Bearer of-something-else") == 200
        assert status(x_api_key="nope") == status(x_api_key="") == status(authorization=KEY) == 401
        refused = client.post("/v1/messages", json={}, headers={"x-api-key": "nope"})
        assert (refused.status_code, error_of(refused)["type"]) == (401, "authentication_error")
        forbidden = client.delete("/v1/messages", headers=bearer(KEY))
        assert (forbidden.status_code, error_of(forbidden)["type"]) == (403, "permission_error")


def test_a_server_that_cannot_answer_is_overloaded() -> None:
    with echo_client(EchoEngine(faults=EchoFaults(start_error=errors.EngineFailure("no memory")))) as client:
        reply = client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
        assert (reply.status_code, error_of(reply)["type"]) == (529, "overloaded_error")


def test_a_connection_that_gives_up_a_request_answers_in_the_shape_of_its_path(echo_url: str) -> None:
    address = urlsplit(echo_url)
    head = f"POST /v1/messages HTTP/1.1\r\nHost: {address.netloc}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE) as connection:
        connection.sendall(head + b"no chunk\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b'{"type":"error","error":{"type":"invalid_request_error"' in answer
