"""The app without a model: operations, the error shape, keys."""

from collections.abc import Iterator

import pytest

from tests.server.client import ReadyClient, echo_client


@pytest.fixture
def client() -> Iterator[ReadyClient]:
    with echo_client(model="tests/echo") as client:
        yield client


def test_a_ready_server_says_so(client: ReadyClient) -> None:
    assert client.get("/ready").json() == {"status": "ready", "model": "echo"}


def test_without_the_chat_template_messages_are_one_text() -> None:
    with echo_client(model="tests/echo", use_chat_template=False) as client:
        messages = [{"role": "user", "content": "once upon"}, {"role": "assistant", "content": " a time"}]
        reply = client.post("/v1/chat/completions", json={"model": "echo", "messages": messages})
    assert reply.json()["choices"][0]["message"]["content"] == "once upon a time"


def test_an_unknown_path_is_a_404_in_openais_shape(client: ReadyClient) -> None:
    reply = client.get("/nope")
    assert reply.status_code == 404
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
