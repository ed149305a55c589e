"""Keys and roles: what is public, what each role may do, and that nothing is open by omission."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.client import ReadyClient, echo_client
from tests.server.keys import ASK, FULL, KEYS, RULE, SCRAPE, TEACH, bearer


@pytest.fixture(scope="module")
def client() -> Iterator[ReadyClient]:
    with echo_client(api_key=KEYS) as client:
        yield client


def status(
    client: ReadyClient, method: str, path: str, key: str | None = None, body: dict[str, Any] | None = None
) -> int:
    headers = {} if key is None else bearer(key)
    return client.request(method, path, headers=headers, json=body).status_code


@pytest.mark.parametrize("path", ["/health", "/ping", "/ready", "/metrics"])
def test_public_paths_need_no_key(client: ReadyClient, path: str) -> None:
    assert status(client, "GET", path) == 200


def test_every_other_path_needs_one_whether_it_exists_or_not(client: ReadyClient) -> None:
    routes: list[Any] = client.app.routes
    paths = [route.path for route in routes if route.path not in ("/health", "/ping", "/ready", "/metrics")]
    for path in [*paths, "/nope", "//health", "/health/", "/HEALTH", "/v1/models/../health"]:
        assert status(client, "GET", path) == 401, path


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer nope", f"Basic {FULL}", FULL, f"Bearer infer:{ASK}"]
)
def test_what_is_not_a_key_of_ours_is_a_401_in_openais_shape(client: ReadyClient, header: str) -> None:
    reply = client.get("/v1/models", headers={"authorization": header})
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert reply.headers["www-authenticate"] == "Bearer"
    assert "x-request-id" in reply.headers


@pytest.mark.parametrize("key", [FULL, ASK, TEACH, RULE])
def test_every_role_sees_the_models(client: ReadyClient, key: str) -> None:
    assert status(client, "GET", "/v1/models", key) == 200


TOKENIZE = {"prompt": "a"}


@pytest.mark.parametrize(
    ("method", "path", "body", "roles"),
    [
        ("POST", "/tokenize", TOKENIZE, {ASK}),
        ("DELETE", "/v1/adapters/nope", None, {RULE}),
        ("GET", "/v1/adapters/nope", None, {RULE}),
        ("GET", "/v1/adapters", None, {RULE}),
        ("POST", "/v1/unload_lora_adapter", {"lora_name": "nope"}, {RULE}),
        ("GET", "/v1/jobs/nope", None, {TEACH, RULE}),
        ("POST", "/v1/jobs/nope/cancel", None, {TEACH, RULE}),
        ("GET", "/nope", None, set()),  # what has no role of its own needs a key with all of them
    ],
)
def test_a_role_opens_its_own_paths_only(
    client: ReadyClient, method: str, path: str, body: dict[str, Any] | None, roles: set[str]
) -> None:
    for key in (ASK, TEACH, RULE):
        assert (status(client, method, path, key, body) == 403) == (key not in roles), key
    assert status(client, method, path, FULL, body) in (200, 404)


def test_a_key_without_the_role_is_told_so_in_openais_shape(client: ReadyClient) -> None:
    reply = client.post("/tokenize", headers=bearer(TEACH), json=TOKENIZE)
    assert reply.json()["error"]["code"] == "insufficient_permissions"
    assert TEACH not in reply.text


def test_the_scheme_is_not_case_sensitive(client: ReadyClient) -> None:
    assert client.get("/v1/models", headers={"authorization": f"bearer {FULL}"}).status_code == 200


def test_metrics_ask_for_a_key_where_they_are_told_to() -> None:
    with echo_client(api_key=FULL, metrics_auth=True) as client:
        assert (status(client, "GET", "/metrics"), status(client, "GET", "/metrics", FULL)) == (401, 200)


def test_a_key_for_metrics_reads_them_and_nothing_else() -> None:
    with echo_client(api_key=(FULL, f"prometheus=metrics:{SCRAPE}"), metrics_auth=True) as client:
        assert status(client, "GET", "/metrics", SCRAPE) == 200
        for path in ("/v1/models", "/version", "/openapi.json", "/v1/files", "/v1/jobs", "/v1/adapters", "/nope"):
            assert status(client, "GET", path, SCRAPE) == 403, path
        assert status(client, "POST", "/tokenize", SCRAPE, TOKENIZE) == 403


def test_without_keys_everything_is_open() -> None:
    with echo_client() as client:
        assert status(client, "GET", "/v1/models") == 200


def test_a_browser_of_an_allowed_origin_may_call_and_needs_a_key_all_the_same() -> None:
    preflight = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    with echo_client(api_key=FULL, allowed_origins="https://chat.example") as client:
        reply = client.options("/v1/models", headers=preflight)
        assert reply.headers["access-control-allow-origin"] == "https://chat.example"
        reply = client.get("/v1/models", headers={"origin": "https://chat.example"})
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (401, "https://chat.example")
        assert "x-ratelimit-remaining-tokens" in reply.headers["access-control-expose-headers"]
        assert client.options("/v1/models", headers=preflight | {"origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("key", "made_by_a_job", "other"), [(ASK, 403, 403), (TEACH, 404, 403), (RULE, 404, 404), (FULL, 404, 404)]
)
def test_who_trains_may_delete_what_jobs_have_made(
    client: ReadyClient, key: str, made_by_a_job: int, other: int
) -> None:
    assert status(client, "DELETE", "/v1/models/ft:echo:tuneserve::nope", key) == made_by_a_job
    assert status(client, "DELETE", "/v1/models/nope", key) == other
