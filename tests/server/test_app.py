"""The app without a model: operations, the error shape, keys."""

from collections.abc import Iterator

import pytest

from engines.echo import EchoEngine
from server.inference.inference import Inference
from tests.server.client import ReadyClient, echo_client
from tests.until import until


@pytest.fixture
def client() -> Iterator[ReadyClient]:
    with echo_client(model="tests/echo") as client:
        yield client


def test_a_ready_server_says_so(client: ReadyClient) -> None:
    assert client.get("/ready").json() == {"status": "ready", "model": "echo"}


def test_an_engine_that_has_failed_for_good_ends_the_server_which_says_503_meanwhile() -> None:
    engine = EchoEngine()
    with echo_client(engine, model="tests/echo") as client:
        lifecycle = client.parts[Inference].lifecycle
        engine.die()  # it may come back
        assert (client.get("/health").status_code, client.get("/ready").status_code) == (200, 503)
        assert not lifecycle.failed.is_set()
        engine.fail()
        reply = client.get("/health")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_failed")
        until(lifecycle.failed.is_set)


def test_monitors_that_ask_by_head_get_the_status_of_get() -> None:
    engine = EchoEngine()
    with echo_client(engine) as client:
        for path in ("/health", "/ping", "/ready"):
            assert (client.head(path).status_code, client.get(path).status_code) == (200, 200)
        engine.die()
        assert (client.head("/health").status_code, client.head("/ready").status_code) == (200, 503)


def test_without_the_chat_template_messages_are_one_text() -> None:
    with echo_client(model="tests/echo", use_chat_template=False) as client:
        messages = [{"role": "user", "content": "once upon"}, {"role": "assistant", "content": " a time"}]
        reply = client.post("/v1/chat/completions", json={"model": "echo", "messages": messages})
    assert reply.json()["choices"][0]["message"]["content"] == "once upon a time"


def test_an_unknown_path_is_a_404_in_openais_shape(client: ReadyClient) -> None:
    reply = client.get("/nope")
    assert reply.status_code == 404
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
