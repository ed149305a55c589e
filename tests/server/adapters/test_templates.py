"""An adapter that brings a chat template answers with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.adapter_folders import write_adapter
from tests.server.client import ReadyClient, echo_client
from tests.server.states import as_state

MESSAGES = [{"role": "user", "content": "hi"}]
OWN = "own: {{ messages[0].content }}"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = write_adapter(tmp_path / "root" / "own")
    (folder / "chat_template.jinja").write_text(OWN)
    return folder


def client_of(tmp_path: Path, **params: Any) -> ReadyClient:
    return echo_client(
        model="org/echo", adapter_roots=(str(tmp_path / "root"),), state_dir=str(as_state(tmp_path / "s")), **params
    )


def load(client: ReadyClient, name: str, folder: Path, **fields: Any) -> dict[str, Any]:
    given = {"lora_name": name, "lora_path": str(folder), **fields}
    reply = client.post("/v1/load_lora_adapter", json=given)
    return {"status": reply.status_code, "text": reply.text}


def prompt(client: ReadyClient, model: str, **fields: Any) -> str:
    asked = {"model": model, "messages": MESSAGES, "return_token_ids": True, "max_tokens": 1, **fields}
    ids = client.post("/v1/chat/completions", json=asked).json()["prompt_token_ids"]
    counted = client.post("/tokenize", json={"model": model, "messages": MESSAGES, **fields}).json()["tokens"]
    assert counted == ids
    return client.post("/detokenize", json={"tokens": ids}).json()["prompt"]


def test_an_adapter_answers_with_the_template_that_it_brings_also_after_a_restart(own: Path, tmp_path: Path) -> None:
    plain = write_adapter(tmp_path / "root" / "plain")
    with client_of(tmp_path) as client:
        load(client, "own", own)
        load(client, "plain", plain)
        assert prompt(client, "own") == "own: hi"
        assert (
            prompt(client, "plain")
            == prompt(client, "echo")
            == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        )
    with client_of(tmp_path) as client:
        assert prompt(client, "own") == "own: hi"


def test_it_is_the_adapters_also_where_the_server_was_given_another_one(own: Path, tmp_path: Path) -> None:
    with client_of(tmp_path, chat_template="server: {{ messages[0].content }}") as client:
        load(client, "own", own)
        assert (prompt(client, "own"), prompt(client, "echo")) == ("own: hi", "server: hi")


def test_an_older_adapter_has_it_in_its_tokenizers_configuration(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "root" / "older")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": OWN}))
    with client_of(tmp_path) as client:
        load(client, "older", folder)
        assert prompt(client, "older") == "own: hi"


def test_variables_that_it_was_trained_with_have_their_values_unless_a_request_says_others(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "root" / "moody")
    (folder / "chat_template.jinja").write_text(
        "{%- set mood = mood | default('merry') %}\n{{ mood }} {{ messages[0].content }}"
    )
    with client_of(tmp_path) as client:
        load(client, "moody", folder)
        assert prompt(client, "moody") == "merry hi"
        assert prompt(client, "moody", chat_template_kwargs={"mood": "sad"}) == "sad hi"


def test_another_template_makes_it_another_version(own: Path, tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        load(client, "own", own)
        (own / "chat_template.jinja").write_text("new: {{ messages[0].content }}")
        load(client, "own", own, load_inplace=True)
        assert prompt(client, "own") == "new: hi"


@pytest.mark.parametrize("template", ["{% for", b"\xff\xfe{"])
def test_a_template_that_cannot_be_read_is_refused(own: Path, tmp_path: Path, template: Any) -> None:
    text = template if isinstance(template, bytes) else template.encode()
    (own / "chat_template.jinja").write_bytes(text)
    with client_of(tmp_path) as client:
        refused = load(client, "own", own)
    assert refused["status"] == 400
    assert "chat template" in refused["text"]
