"""Unknown fields: ignored and told, or refused where the server is started so. Null is the same as no field."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.http.ignored import MOST_CHARACTERS, MOST_LOGGED, MOST_NAMES, Ignored, IgnoredFields
from tests.server.api import EchoApi
from tests.server.client import echo_client
from tests.server.test_battery import VALID

HEADER = "x-ignored-fields"
CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
STRICT = (
    "/v1/jobs",
    "/v1/adapters",
    "/v1/adapters/{alias}/alias",
    "/v1/chat/completions/export",
    "/v1/fine_tuning/alpha/graders/run",
    "/v1/fine_tuning/alpha/graders/validate",
)
"""Bodies that only clients of this server write."""


@pytest.fixture
def api() -> Iterator[EchoApi]:
    with echo_client() as client:
        yield EchoApi(client)


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_names_unknown_fields_in_a_header(api: EchoApi, stream: bool) -> None:
    reply = api.http.post("/v1/chat/completions", json=CHAT | {"stream": stream, "zeta": 1, "alpha": {"beta": 2}})
    assert (reply.status_code, reply.headers[HEADER]) == (200, "zeta,alpha")


@pytest.mark.parametrize("path", [path for path in VALID if path not in STRICT])
def test_every_other_body_may_have_unknown_fields(api: EchoApi, path: str) -> None:
    """What its values name is not there, which comes after its fields."""
    known, unknown = (api.http.post(path, json=VALID[path] | fields) for fields in ({}, {"zeta": 1}))
    assert (unknown.status_code, unknown.headers[HEADER].split(",")[0]) == (known.status_code, "zeta")


def test_an_answer_to_known_fields_has_no_such_header(api: EchoApi) -> None:
    assert HEADER not in api.http.post("/v1/chat/completions", json=CHAT | {"temperature": 1}).headers


def test_an_unknown_field_that_is_null_is_no_field(api: EchoApi) -> None:
    assert HEADER not in api.http.post("/v1/chat/completions", json=CHAT | {"zeta": None}).headers


def test_a_web_page_may_read_the_header() -> None:
    with echo_client(allowed_origins=("http://page",)) as client:
        reply = client.post("/v1/chat/completions", json=CHAT, headers={"origin": "http://page"})
    assert HEADER in reply.headers["access-control-expose-headers"]


def test_a_refusal_tells_of_them_too_since_one_may_be_a_field_misspelt(api: EchoApi) -> None:
    error = api.http.post("/v1/completions", json={"model": "echo", "promt": "hi"}).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")
    assert "'promt' is ignored" in error["message"]


def test_each_name_is_logged_once(api: EchoApi, caplog: pytest.LogCaptureFixture) -> None:
    for fields in ({"zeta": 1}, {"zeta": 2}, {"alpha": 1}):
        api.http.post("/v1/chat/completions", json=CHAT | fields)
    logged = [record.getMessage() for record in caplog.records if record.name == "server.http.ignored"]
    assert [message.split()[2] for message in logged] == ["zeta", "alpha"]
    assert all(record.levelno == logging.WARNING for record in caplog.records if record.name == "server.http.ignored")


def test_answers_that_tell_of_them_are_counted_by_route(api: EchoApi) -> None:
    for fields in ({"zeta": 1}, {"alpha": 1, "beta": 2}, {}):
        api.http.post("/v1/chat/completions", json=CHAT | fields)
    families = text_string_to_metric_families(api.http.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if "ignored_fields_total" in sample.name]
    assert [(sample.labels["path"], sample.value) for sample in samples] == [("/v1/chat/completions", 2)]


def test_a_header_holds_few_names_that_are_short_and_harmless() -> None:
    ignored = Ignored()
    ignored.add("a,b\r\nc: d", "é" * 1000, *(f"n{number}" for number in range(1000)))
    names = ignored.to_header().split(",")
    assert names[:3] == ["a?b??c??d", "?" * MOST_CHARACTERS, "n0"]
    assert (len(names), names[-1]) == (MOST_NAMES + 1, "...")


def test_the_log_remembers_so_many_names(caplog: pytest.LogCaptureFixture) -> None:
    fields = IgnoredFields(lambda path: None)
    for number in range(MOST_LOGGED + 10):
        ignored = Ignored()
        ignored.add(f"n{number}")
        fields.tell("/path", ignored)
    assert len(caplog.records) == MOST_LOGGED


@pytest.mark.parametrize("path", VALID)
def test_started_so_the_server_refuses_them_by_name(path: str) -> None:
    with echo_client(unknown_fields="refuse") as client:
        reply = client.post(path, json=VALID[path] | {"zeta": 1})
    assert reply.status_code == 400 and "Unknown parameter: 'zeta'" in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", STRICT)
def test_bodies_of_this_server_alone_take_no_unknown_field(api: EchoApi, path: str) -> None:
    error = api.http.post(path, json=VALID[path] | {"zeta": 1}).json()["error"]
    assert (error["param"], error["code"]) == ("zeta", "unknown_parameter")
