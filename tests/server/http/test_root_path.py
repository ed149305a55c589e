"""A server behind a proxy that shows it under a path."""

from collections.abc import Iterator

import pytest

from tests.server.client import ReadyClient, echo_client
from tests.server.keys import ASK, FULL, bearer

BODY = {"model": "echo", "prompt": "hi"}


@pytest.fixture(scope="module")
def client() -> Iterator[ReadyClient]:
    with echo_client(root_path="/llm", api_key=[FULL, f"infer:{ASK}"]) as client:
        yield client


@pytest.mark.parametrize("prefix", ["", "/llm"], ids=["taken off", "left"])
def test_requests_are_answered_whether_the_proxy_takes_the_path_off_or_not(client: ReadyClient, prefix: str) -> None:
    assert client.post(f"{prefix}/v1/completions", json=BODY, headers=bearer(ASK)).status_code == 200
    assert [client.get(f"{prefix}{path}").status_code for path in ("/health", "/ping", "/ready")] == [200] * 3


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_keys_and_roles_are_those_of_the_route(client: ReadyClient, prefix: str) -> None:
    assert client.post(f"{prefix}/v1/completions", json=BODY).status_code == 401
    assert client.get(f"{prefix}/v1/jobs", headers=bearer(ASK)).status_code == 403
    assert client.get(f"{prefix}/v1/jobs", headers=bearer(FULL)).status_code == 200


@pytest.mark.parametrize("path", ["/llm/llm/health", "/llmhealth", "/other/health", "/health/llm", "/llm"])
def test_other_paths_are_not_taken_for_those_of_routes(client: ReadyClient, path: str) -> None:
    assert client.get(path).status_code == 401
    assert client.get(path, headers=bearer(FULL)).status_code == 404


def test_the_description_names_the_path(client: ReadyClient) -> None:
    assert client.get("/openapi.json", headers=bearer(FULL)).json()["servers"] == [{"url": "/llm"}]
    assert "/llm/openapi.json" in client.get("/llm/docs", headers=bearer(FULL)).text


@pytest.mark.parametrize("path", ["llm", "/llm/", "/", "//llm", "/a b", "/a?b"])
def test_what_is_no_such_path_is_refused_at_the_start(path: str) -> None:
    with pytest.raises(ValueError, match="root_path"):
        echo_client(root_path=path)
