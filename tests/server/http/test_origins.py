"""Web pages of other origins, with the headers that a browser sends for them: none may use the server unless named."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.client import ReadyClient, Response, echo_client
from tests.server.keys import FULL, bearer

PAGE = "https://evil.example"
HOST = {"host": "localhost:8000"}
CHROME = {
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0 Safari/537.36",
    "accept-encoding": "gzip, deflate, br, zstd",
    "accept-language": "en-US,en;q=0.9",
}


def fetch(site: str, mode: str, dest: str) -> dict[str, str]:
    return HOST | CHROME | {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}


NO_CORS = fetch("cross-site", "no-cors", "empty") | {"origin": PAGE, "referer": f"{PAGE}/", "accept": "*/*"}
"""`fetch(url, {mode: "no-cors", method: "POST", ...})`: sent without asking the server for leave."""
FORM = fetch("cross-site", "navigate", "document") | {"origin": PAGE, "referer": f"{PAGE}/", "sec-fetch-user": "?1"}
"""A form that a page submits."""
IMAGE = fetch("cross-site", "no-cors", "image") | {"referer": f"{PAGE}/"}
LINK = fetch("cross-site", "navigate", "document") | {"referer": f"{PAGE}/", "sec-fetch-user": "?1"}
TYPED = fetch("none", "navigate", "document")
SANDBOX = fetch("cross-site", "no-cors", "empty") | {"origin": "null"}
OTHER_PORT = fetch("same-site", "cors", "empty") | {"origin": "http://localhost:3000"}
OWN_PAGE = fetch("same-origin", "cors", "empty") | {"origin": "http://localhost:8000"}
OVER_THE_NETWORK = CHROME | {"host": "192.168.1.7:8000", "origin": PAGE, "referer": f"{PAGE}/"}
"""Browsers tell nothing of the site where the address is neither encrypted nor this machine."""
REBOUND = CHROME | {"host": "evil.example:8000", "origin": "http://evil.example:8000"}
CHAT = b'{"model": "echo", "messages": [{"role": "user", "content": "hi"}]}'
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client() -> Iterator[ReadyClient]:
    with echo_client() as client:
        yield client


def chat(client: ReadyClient, headers: dict[str, str]) -> Response:
    return client.post("/v1/chat/completions", content=CHAT, headers=headers)


def refusal(reply: Response) -> str:
    error = reply.json()["error"]
    assert reply.status_code == 403 and error["type"] == "invalid_request_error" and "x-request-id" in reply.headers
    assert "access-control-allow-origin" not in reply.headers
    return str(error["code"])


# ---- pages of other origins


@pytest.mark.parametrize("headers", [NO_CORS, SANDBOX, OTHER_PORT, OVER_THE_NETWORK, FORM])
def test_a_page_of_another_origin_gets_no_answer_out_of_the_model(client: ReadyClient, headers: dict[str, str]) -> None:
    for content_type in ("application/json", "text/plain;charset=UTF-8"):
        assert refusal(chat(client, headers | {"content-type": content_type})) == "origin_not_allowed"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/jobs/nope/cancel"),
        ("POST", "/v1/fine_tuning/jobs/nope/pause"),
        ("POST", "/v1/batches/nope/cancel"),
        ("POST", "/sleep"),
        ("DELETE", "/v1/models/nope"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/nope"),
        ("HEAD", "/v1/models"),
        ("OPTIONS", "/v1/models"),
    ],
)
def test_it_has_no_way_around_by_another_method(client: ReadyClient, method: str, path: str) -> None:
    assert client.request(method, path, headers=NO_CORS).status_code == 403


def test_a_form_of_another_origin_uploads_no_file(client: ReadyClient) -> None:
    files: Any = {"file": ("a.jsonl", b'{"messages": []}')}
    reply = client.post("/v1/files", data={"purpose": "fine-tune"}, files=files, headers=FORM)
    assert refusal(reply) == "origin_not_allowed"
    assert client.get("/v1/files").json()["data"] == []


def test_an_image_of_another_page_asks_for_nothing(client: ReadyClient) -> None:
    assert refusal(client.get("/v1/models", headers=IMAGE)) == "origin_not_allowed"


def test_a_preflight_of_another_origin_is_told_no(client: ReadyClient) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    assert refusal(client.options("/v1/chat/completions", headers=NO_CORS | asks)) == "origin_not_allowed"


@pytest.mark.parametrize(
    "origin", ["null", "", "http://", "http://[", "http://localhost", "file://", "http://localhost:8000/"]
)
def test_what_is_no_origin_of_ours_is_foreign(client: ReadyClient, origin: str) -> None:
    for host in (HOST, {"host": ""}):
        assert chat(client, JSON | host | {"origin": origin}).status_code == 403


# ---- who is let in


@pytest.mark.parametrize("headers", [{}, HOST, OWN_PAGE, TYPED])
def test_programs_and_pages_of_the_server_itself_are_let_in(client: ReadyClient, headers: dict[str, str]) -> None:
    assert chat(client, headers | JSON).status_code == 200


def test_a_page_behind_a_proxy_that_encrypts_is_the_servers_own() -> None:
    headers = {"host": "llm.example", "origin": "https://llm.example", "sec-fetch-site": "same-origin"}
    with echo_client(api_key=[FULL]) as client:
        assert chat(client, headers | JSON | bearer(FULL)).status_code == 200


def test_a_person_may_follow_a_link_to_the_server(client: ReadyClient) -> None:
    assert client.get("/docs", headers=LINK).status_code == 200
    assert client.post("/docs", headers=LINK).status_code == 403
    assert client.get("/docs", headers=LINK | {"sec-fetch-dest": "iframe"}).status_code == 403


@pytest.mark.parametrize("path", ["/health", "/ping", "/ready"])
def test_probes_may_come_under_any_name(client: ReadyClient, path: str) -> None:
    assert client.get(path, headers={"host": "anything.example"}).status_code == 200
    assert client.get(path, headers=NO_CORS).status_code == 200


@pytest.mark.parametrize("allowed", ["https://chat.example", "*"])
def test_an_allowed_origin_may_ask_for_leave_and_then_for_an_answer(allowed: str) -> None:
    page = fetch("cross-site", "cors", "empty") | {"origin": "https://chat.example"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    with echo_client(allowed_origins=[allowed]) as client:
        leave = client.options("/v1/chat/completions", headers=page | asks)
        assert leave.status_code == 200
        assert leave.headers["access-control-allow-origin"] in ("https://chat.example", "*")
        answer = chat(client, page | JSON)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] in ("https://chat.example", "*")
        assert (chat(client, NO_CORS | JSON).status_code == 200) == (allowed == "*")


def test_a_page_with_a_key_must_be_named_all_the_same() -> None:
    with echo_client(api_key=[FULL]) as client:
        assert refusal(chat(client, NO_CORS | JSON | bearer(FULL))) == "origin_not_allowed"


# ---- DNS rebinding


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "x@127.0.0.1", ""]
)
def test_a_name_that_is_not_the_servers_is_refused_where_there_are_no_keys(client: ReadyClient, host: str) -> None:
    assert refusal(chat(client, JSON | REBOUND | {"host": host, "origin": f"http://{host}"})) == "host_not_allowed"
    assert refusal(client.get("/v1/files", headers={"host": host})) == "host_not_allowed"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LOCALHOST.",
        "a.localhost",
        "127.0.0.1:8000",
        "[::1]:8000",
        "192.168.1.7",
        "[fe80::1]",
    ],
)
def test_addresses_and_this_machine_are_known(client: ReadyClient, host: str) -> None:
    assert chat(client, JSON | {"host": host}).status_code == 200


def test_the_machines_name_and_the_one_it_listens_by_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Workstation")
    with echo_client(host="gpu.lan") as client:
        for host in ("workstation:8000", "gpu.lan", "GPU.lan:8000"):
            assert chat(client, JSON | {"host": host}).status_code == 200


def test_with_keys_any_name_is_taken_unless_some_are_named() -> None:
    with echo_client(api_key=[FULL]) as client:
        assert chat(client, JSON | bearer(FULL) | {"host": "llm.example"}).status_code == 200
        assert chat(client, JSON | REBOUND).status_code == 401
    with echo_client(api_key=[FULL], allowed_hosts=["llm.example"]) as client:
        assert refusal(chat(client, JSON | bearer(FULL) | {"host": "other.example"})) == "host_not_allowed"
        for host in ("llm.example", "LLM.example:443", "127.0.0.1:8000"):
            assert chat(client, JSON | bearer(FULL) | {"host": host}).status_code == 200


@pytest.mark.parametrize("allowed", ["llm.example", "*"])
def test_an_allowed_host_is_known(allowed: str) -> None:
    with echo_client(allowed_hosts=[allowed]) as client:
        assert chat(client, JSON | {"host": "llm.example:8000"}).status_code == 200
        assert (chat(client, JSON | REBOUND).status_code == 200) == (allowed == "*")


# ---- JSON


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded"]
)
def test_json_is_taken_under_its_own_name_only(client: ReadyClient, content_type: str | None) -> None:
    """For these types a browser asks for no leave; none is sent for a Blob without a type."""
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/batches", "/v1/jobs"):
        request = client.build_request("POST", path, content=CHAT)
        request.headers.pop("content-type", None)
        if content_type is not None:
            request.headers["content-type"] = content_type
        reply = client.send(request)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_content_type")


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_may_say_how_it_is_written(client: ReadyClient, content_type: str) -> None:
    assert chat(client, {"content-type": content_type}).status_code == 200
