"""The error table: each case has its status and code, in OpenAI's shape, and tells nothing that is not the client's."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from engines import errors
from engines.echo import EchoEngine, EchoFaults
from server.http.body import Items, RequestBody, StrictBody, json_body, parse_json
from server.http.errors import BodyTooLarge, InsufficientPermissions, InvalidApiKey
from server.messages.schema import MessageRequest
from server.openai.embeddings import EmbeddingsBody
from server.openai.schema import ChatRequest, CompletionRequest
from server.openai.tokenization import DetokenizeBody, TokenizeBody
from tests.server.client import ReadyClient, Response, echo_client

ERRORS = [
    (errors.InvalidRequest("no", param="n"), 400, "invalid_request"),
    (errors.UnsupportedParameter("no", param="n"), 400, "unsupported_parameter"),
    (errors.ContextLengthExceeded("no"), 400, "context_length_exceeded"),
    (InvalidApiKey("no"), 401, "invalid_api_key"),
    (InsufficientPermissions("no"), 403, "insufficient_permissions"),
    (errors.NotFound("no"), 404, "not_found"),
    (errors.ModelNotFound("no"), 404, "model_not_found"),
    (errors.Conflict("no"), 409, "conflict"),
    (BodyTooLarge("no"), 413, "request_too_large"),
    (errors.QueueFull("no"), 429, "rate_limit_exceeded"),
    (errors.EngineUnavailable("no"), 503, "service_unavailable"),
]
OURS = [
    errors.EngineFailure("/secret"),
    errors.UnsupportedModel("/secret"),
    RuntimeError("/secret"),
    OSError("/secret"),
]


class Part(RequestBody):
    text: str


class Message(RequestBody):
    role: str
    content: str | list[Part]


class Strict(StrictBody):
    name: str


class Body(RequestBody):
    messages: Items[Message]
    n: int = Field(1, ge=1, le=128)
    strict: Strict | None = None
    temperature: float = Field(1, ge=0, le=2)


@pytest.fixture(scope="module")
def client() -> Iterator[ReadyClient]:
    client = echo_client(max_body_size=0.1)

    @client.app.post("/body")
    async def body(body: Annotated[Body, json_body(Body)]) -> dict[str, int]:
        return {"n": body.n}

    @client.app.get("/raise/{number}")
    async def fail(number: int) -> None:
        raise [*(error for error, _, _ in ERRORS), *OURS][number]

    with client:
        yield client


def error_of(reply: Response) -> dict[str, Any]:
    """The error object, after a look at everything that all errors have in common."""
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    assert list(reply.json()) == ["error"]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and isinstance(error["type"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    return error


@pytest.mark.parametrize("number", range(len(ERRORS)), ids=lambda number: type(ERRORS[number][0]).__name__)
def test_each_error_class_has_its_status_and_code(client: ReadyClient, number: int) -> None:
    error, status, code = ERRORS[number]
    reply = client.get(f"/raise/{number}")
    assert reply.status_code == status
    assert error_of(reply) | {"type": ""} == {"message": "no", "type": "", "param": error.param, "code": code}
    assert ("retry-after" in reply.headers) == (status in (429, 503))


@pytest.mark.parametrize("number", range(len(OURS)), ids=lambda number: type(OURS[number]).__name__)
def test_a_failure_of_ours_is_a_500_that_tells_nothing_but_the_log_has_it(
    client: ReadyClient, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    reply = client.get(f"/raise/{len(ERRORS) + number}", headers={"x-request-id": "find-me"})
    assert reply.status_code == 500
    error = error_of(reply)
    assert error["type"] == "server_error" and "secret" not in reply.text and "find-me" in error["message"]
    assert any("find-me" in record.getMessage() and record.exc_info for record in caplog.records)


def test_an_unknown_path_and_a_wrong_method(client: ReadyClient) -> None:
    assert error_of(client.get("/nope"))["code"] == "not_found"
    reply = client.get("/body")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert error_of(reply)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/v1/files", "GET, HEAD, POST"), ("/v1/files/a", "DELETE, GET, HEAD"), ("/v1/models/a/b", "DELETE, GET, HEAD")],
)
def test_a_wrong_method_is_told_all_that_the_path_has(client: ReadyClient, path: str, methods: str) -> None:
    assert client.put(path).headers["allow"] == methods


def test_a_wrong_value_in_the_path_is_a_400(client: ReadyClient) -> None:
    reply = client.get("/raise/x")
    assert reply.status_code == 400
    assert "integer" in error_of(reply)["message"]


def test_what_is_no_object_is_told_so_in_words_of_json() -> None:
    for wrong in (
        {"messages": ["hi"]},
        {"messages": [HELLO], "stream_options": 1},
        {"messages": [HELLO], "metadata": []},
    ):
        with pytest.raises(errors.InvalidRequest, match="Input should be an object"):
            parse_json(ChatRequest, json.dumps({"model": "m", **wrong}).encode())


HELLO = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "messages", "missing_required_parameter"),
        ({"messages": None}, "messages", "invalid_request"),
        ({"messages": "hi"}, "messages", "invalid_request"),
        ({"messages": [HELLO, {"role": "user"}]}, "messages[1].content", "missing_required_parameter"),
        ({"messages": [{"role": 1, "content": "hi"}]}, "messages[0].role", "invalid_request"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_request"),
        (
            {"messages": [{"role": "user", "content": [{"text": 1}]}]},
            "messages[0].content[0].text",
            "invalid_request",
        ),
        ({"messages": [HELLO], "n": 0}, "n", "invalid_request"),
        ({"messages": [HELLO], "n": 10**9}, "n", "invalid_request"),
        ({"messages": [HELLO], "n": 10**30}, "n", "invalid_request"),
        ({"messages": [HELLO], "n": "1"}, "n", "invalid_request"),
        ({"messages": [HELLO], "n": True}, "n", "invalid_request"),
        ({"messages": [HELLO], "temperature": 3}, "temperature", "invalid_request"),
    ],
)
def test_a_body_that_does_not_fit_names_the_field(
    client: ReadyClient, body: dict[str, Any], param: str, code: str
) -> None:
    reply = client.post("/body", json=body)
    assert reply.status_code == 400
    error = error_of(reply)
    assert (error["param"], error["code"]) == (param, code)
    assert param in error["message"]


def test_a_message_tells_a_few_errors_and_cuts_values_short(client: ReadyClient) -> None:
    body = {"messages": [{"role": 1}], "n": "x" * 10_000, "temperature": "y" * 10_000}
    message = error_of(client.post("/body", json=body))["message"]
    assert len(message) < 1000 and "and 1 more" in message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [HELLO] * 7 + [1] * 500_000}, "messages[7]"),
        ({"strict": {str(number): 1 for number in range(90_000)}}, "strict.0"),
    ],
    ids=["items", "unknown"],
)
def test_of_very_many_errors_the_first_is_told(body: dict[str, Any], param: str) -> None:
    with pytest.raises(errors.InvalidRequest) as refusal:
        parse_json(Body, json.dumps(body).encode())
    assert refusal.value.param == param


BODIES = [ChatRequest, CompletionRequest, MessageRequest, EmbeddingsBody, TokenizeBody, DetokenizeBody]


@pytest.mark.parametrize("model", BODIES)
def test_no_list_or_object_in_a_body_is_read_on_after_its_first_wrong_item(model: type[BaseModel]) -> None:
    """To describe a million errors takes seconds, in which nobody else is answered."""
    kinds = [node for node in nodes(model.__pydantic_core_schema__) if node.get("type") in ("list", "dict")]
    checked = [node for node in kinds if node.get("items_schema", node.get("values_schema"))["type"] != "any"]
    assert all(node.get("fail_fast") for node in checked)


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Every part of a schema of pydantic's that takes part in validation."""
    if isinstance(schema, dict):
        yield schema
        schema = [child for key, child in schema.items() if key not in ("json_schema_input_schema", "metadata")]
    for child in schema if isinstance(schema, list | tuple) else ():
        yield from nodes(child)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"{", "not valid JSON"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b'"x"', "JSON object"),
        (b'{"n": NaN}', "not valid JSON"),
        (b'{"n": Infinity}', "not valid JSON"),
        (b'{"n": 1e999}', "not valid JSON"),
        (b'{"n": "\xff"}', "not valid JSON"),
        (b'{"n": "\\ud800"}', "not valid JSON"),
        (b"{'n': 1}", "not valid JSON"),
        (b'{"n": 1} trailing', "not valid JSON"),
        (b'{"n":' + b"[" * 101 + b"]" * 101 + b"}", "nested"),
        (b'{"n":' + b"[" * 40_000 + b"]" * 40_000 + b"}", "depth"),
        (b'{"n":' + b'{"a":' * 20_000, "not valid JSON"),
        (b"\x00\x01\x02", "not valid JSON"),
    ],
)
def test_a_body_that_is_not_a_json_object_is_a_400(client: ReadyClient, data: bytes, why: str) -> None:
    reply = client.post("/body", content=data, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert why in error_of(reply)["message"]


def test_a_body_of_very_many_values_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(errors.InvalidRequest, match="more than 600000 values"):
        parse_json(Body, b'{"n": [' + b"0," * 1_000_001 + b"0]}")


def test_of_a_key_that_comes_twice_the_last_counts(client: ReadyClient) -> None:
    data = b'{"messages": [], "n": 1, "n": 2}'
    assert client.post("/body", content=data, headers={"content-type": "application/json"}).json() == {"n": 2}


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"]
)
def test_another_content_type_is_a_400_that_says_which_one_is_right(client: ReadyClient, content_type: str) -> None:
    reply = client.post("/body", content=b'{"messages": []}', headers={"content-type": content_type})
    assert reply.status_code == 400
    assert "application/json" in error_of(reply)["message"]


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", "application/x+json"])
def test_json_goes_by_several_names(client: ReadyClient, content_type: str) -> None:
    reply = client.post("/body", content=b'{"messages": []}', headers={"content-type": content_type})
    assert reply.status_code == 200


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_a_body_may_say_that_it_is_not_compressed(client: ReadyClient, encoding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    assert client.post("/body", content=b'{"messages": []}', headers=headers).status_code == 200


def test_a_compressed_body_is_refused(client: ReadyClient) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert "gzip" in error_of(client.post("/body", content=b"x", headers=headers))["message"]


def test_a_body_that_is_too_large_is_a_413_whether_its_length_is_announced_or_not(client: ReadyClient) -> None:
    data = json.dumps({"messages": [], "x": "y" * 200_000}).encode()
    for content in (data, iter([data[:150_000], data[150_000:]])):
        reply = client.post("/body", content=content, headers={"content-type": "application/json"})
        assert reply.status_code == 413
        assert error_of(reply)["message"] == "The request's body is larger than 0.1 MiB."


def test_the_callers_request_id_comes_back_where_it_is_sane(client: ReadyClient) -> None:
    def request_id(given: str) -> str:
        return client.get("/health", headers={"x-request-id": given}).headers["x-request-id"]

    assert request_id("abc-123") == "abc-123"
    for strange in ("", "a b", "x" * 200, "<script>"):
        assert request_id(strange).startswith("req-")


def test_refusals_of_a_full_queue_and_of_a_stopped_engine_reach_the_client() -> None:
    engine = EchoEngine(faults=EchoFaults(start_error=errors.EngineFailure("no memory")))
    with echo_client(engine) as client:
        for method, path in (
            ("GET", "/ready"),
            ("GET", "/v1/models"),
            ("POST", "/v1/embeddings"),
            ("POST", "/tokenize"),
        ):
            reply = client.request(
                method, path, json={"model": "echo", "input": "a"} if "emb" in path else {"prompt": "a"}
            )
            assert reply.status_code == 503, path
            assert error_of(reply)["message"] == "The engine has failed."
        assert error_of(client.get("/health"))["code"] == "engine_failed"
