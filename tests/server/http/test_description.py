"""/openapi.json describes what the server takes, and a client that follows it is understood."""

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from tests.server.client import ReadyClient, echo_client
from tests.server.test_battery import VALID

PUBLIC = {"/health", "/ping", "/ready", "/metrics"}
WITHOUT_BODY = {
    "/ping",
    "/sleep",
    "/wake_up",
    "/v1/batches/{batch_id}/cancel",
    "/v1/evals/{eval_id}/runs/{run_id}",
    "/v1/evals/{eval_id}/runs/{run_id}/cancel",
    "/v1/responses/compact",
    "/v1/uploads/{upload_id}/cancel",
    "/v1/responses/{response_id}/cancel",
    *(f"/v1/jobs/{{job_id}}/{verb}" for verb in ("cancel", "pause", "resume", "retry")),
    *(f"/v1/fine_tuning/jobs/{{fine_tuning_job_id}}/{verb}" for verb in ("cancel", "pause", "resume")),
}
"""What is posted to and told nothing."""


@pytest.fixture(scope="module")
def client() -> Iterator[ReadyClient]:
    with echo_client() as client:
        yield client


@pytest.fixture(scope="module")
def description(client: ReadyClient) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def test_it_is_a_valid_openapi_document(description: dict[str, Any]) -> None:
    validate(description)


def test_every_route_that_takes_a_body_says_which(description: dict[str, Any]) -> None:
    posts = {path: operations["post"] for path, operations in description["paths"].items() if "post" in operations}
    bodies = {path: post["requestBody"] for path, post in posts.items() if "requestBody" in post}
    others = {"/v1/files", "/v1/uploads/{upload_id}/parts"}  # forms, and what takes no field as well
    others |= {"/v1/conversations", "/v1/evals/{eval_id}", "/v1/evals/{eval_id}/runs"}
    assert VALID.keys() | others == bodies.keys()
    assert all(body["required"] for body in bodies.values())
    assert posts.keys() - bodies.keys() == WITHOUT_BODY


def accepts(description: dict[str, Any], path: str, body: object) -> bool:
    content = description["paths"][path]["post"]["requestBody"]["content"]
    schema = {**content["application/json"]["schema"], "components": description["components"]}
    return Draft202012Validator(schema).is_valid(body)


@pytest.mark.parametrize("path", VALID)
def test_bodies_fit_the_description_where_the_server_takes_them(
    client: ReadyClient, description: dict[str, Any], path: str
) -> None:
    assert accepts(description, path, VALID[path])
    assert not accepts(description, path, {})


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1], [2]]])
def test_the_forms_of_a_prompt_and_of_stops_are_described(description: dict[str, Any], prompt: list[Any] | str) -> None:
    body = {"model": "echo", "prompt": prompt}
    assert accepts(description, "/v1/completions", body | {"stop": "x"})
    assert accepts(description, "/v1/completions", body | {"stop": ["x", "y"]})
    assert not accepts(description, "/v1/completions", body | {"stop": 1})


KEY = "k" * 16
EITHER_KEY: list[dict[str, list[str]]] = [{"key": []}, {"anthropic_key": []}]


@pytest.mark.parametrize("metrics_auth", [False, True])
def test_every_operation_but_the_public_ones_names_the_key(metrics_auth: bool) -> None:
    with echo_client(api_key=KEY, metrics_auth=metrics_auth) as client:
        reply = client.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"})
    public = PUBLIC - {"/metrics"} if metrics_auth else PUBLIC
    assert reply.json()["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert all(keys == (None if path in public else EITHER_KEY) for path, keys in keys_of_operations(reply.json()))


def test_where_there_are_no_keys_none_is_needed(description: dict[str, Any]) -> None:
    assert all(path in PUBLIC or {} in keys for path, keys in keys_of_operations(description))


def keys_of_operations(description: dict[str, Any]) -> list[tuple[str, Any]]:
    paths = description["paths"].items()
    return [(path, operation.get("security")) for path, operations in paths for operation in operations.values()]


STREAMING = [
    ("post", "/v1/chat/completions"),
    ("post", "/v1/completions"),
    ("post", "/v1/messages"),
    ("post", "/v1/responses"),
    ("get", "/v1/responses/{response_id}"),
    ("get", "/v1/jobs/{job_id}/events"),
]


def test_a_route_that_may_answer_with_events_says_so(description: dict[str, Any]) -> None:
    told = [
        (method, path)
        for path, operations in description["paths"].items()
        for method, operation in operations.items()
        if {"application/json", "text/event-stream"} == operation["responses"].get("200", {}).get("content", {}).keys()
    ]
    assert sorted(told) == sorted(STREAMING)


def test_every_error_is_openais_or_anthropics_and_never_fastapis(
    client: ReadyClient, description: dict[str, Any]
) -> None:
    for path, model in (("/tokenize", "Error"), ("/v1/messages", "AnthropicError")):
        schema = description["paths"][path]["post"]["responses"]["default"]["content"]["application/json"]["schema"]
        assert schema["$ref"].endswith(f"/{model}")
        validator = Draft202012Validator({**schema, "components": description["components"]})
        assert validator.is_valid(client.post(path, json={}).json())
    for operations in description["paths"].values():
        for operation in operations.values():
            assert operation["responses"].keys() in ({"200", "default"}, {"201", "default"})


def test_the_page_shows_the_description(client: ReadyClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in page.text
