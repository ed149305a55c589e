"""The app without a model: operations, the error shape, keys."""

from collections.abc import Iterator

import pytest

from engines.echo import EchoEngine, echo_tokenizer
from engines.params.deploy import DeployParams
from server.parts import make_parts
from tests.server.client import ReadyClient


@pytest.fixture
def client() -> Iterator[ReadyClient]:
    parts = make_parts(EchoEngine(), echo_tokenizer(), DeployParams(model="tests/echo"))
    with ReadyClient(parts) as client:
        yield client


def test_a_ready_server_says_so(client: ReadyClient) -> None:
    assert client.get("/ready").json() == {"status": "ready", "model": "echo"}


def test_without_the_chat_template_messages_are_one_text() -> None:
    params = DeployParams(model="tests/echo", use_chat_template=False)
    with ReadyClient(make_parts(EchoEngine(), echo_tokenizer(), params)) as client:
        messages = [{"role": "user", "content": "once upon"}, {"role": "assistant", "content": " a time"}]
        reply = client.post("/v1/chat/completions", json={"model": "echo", "messages": messages})
    assert reply.json()["choices"][0]["message"]["content"] == "once upon a time"


def test_an_unknown_path_is_a_404_in_openais_shape(client: ReadyClient) -> None:
    reply = client.get("/nope")
    assert reply.status_code == 404
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
