"""/tokenize and /detokenize."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tokenizers.processors import TemplateProcessing

from engines.echo import END_OF_TEXT, EchoEngine, echo_tokenizer
from engines.params.deploy import DeployParams
from server.parts import make_parts
from tests.server.client import ReadyClient, echo_client


@pytest.fixture
def client(echo_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=echo_url) as client:
        yield client


def test_a_text_becomes_tokens_and_a_text_again(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"model": "echo", "prompt": "é"}).json()
    assert answer == {"count": 2, "max_model_len": 4096, "tokens": [195, 169]}
    assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "é"}


def test_the_spelling_of_the_tokens_is_given_on_demand(client: httpx.Client) -> None:
    answer = client.post("/tokenize", json={"prompt": "a<|im_end|>", "return_token_strs": True}).json()
    assert answer["token_strs"] == ["a", "<|im_end|>"]


def test_a_text_longer_than_the_context_is_counted_all_the_same(client: httpx.Client) -> None:
    assert client.post("/tokenize", json={"prompt": "a" * 100_000}).json()["count"] == 100_000


MESSAGES = [{"role": "user", "content": "hi"}]
ASKED = "<|im_start|>user\nhi<|im_end|>\n"
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


def rendered(client: Any, **fields: Any) -> str:
    """The text that the messages became."""
    tokens = client.post("/tokenize", json={"messages": MESSAGES, **fields}).json()["tokens"]
    return client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]


def test_messages_become_the_tokens_of_the_prompt_that_a_chat_would_have(client: httpx.Client) -> None:
    tokens = client.post("/tokenize", json={"model": "echo", "messages": MESSAGES}).json()["tokens"]
    chat = {"model": "echo", "messages": MESSAGES, "max_tokens": 1, "return_token_ids": True}
    assert client.post("/v1/chat/completions", json=chat).json()["prompt_token_ids"] == tokens


def test_messages_are_rendered_as_asked(client: httpx.Client) -> None:
    assert rendered(client) == ASKED + "<|im_start|>assistant\n"
    assert rendered(client, add_generation_prompt=False) == ASKED
    begun = [*MESSAGES, {"role": "assistant", "content": "Hello"}]
    assert rendered(client, messages=begun, continue_final_message=True) == ASKED + "<|im_start|>assistant\nHello"
    assert '"name": "look_up"' in rendered(client, tools=[TOOL])


def test_the_variables_of_a_template_are_given_to_it() -> None:
    with echo_client(chat_template="{{ mood }} {{ messages[0].content }}") as client:
        assert rendered(client, chat_template_kwargs={"mood": "merry"}) == "merry hi"


def test_special_tokens_are_added_as_asked_by_default_to_texts_only() -> None:
    tokenizer = echo_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", END_OF_TEXT)]
    )
    with ReadyClient(make_parts(EchoEngine(), tokenizer, DeployParams(model="echo"))) as client:
        body: dict[str, Any]
        for body in ({"prompt": "hi"}, {"messages": MESSAGES, "add_special_tokens": True}):
            assert client.post("/tokenize", json=body).json()["tokens"][0] == END_OF_TEXT
        for body in ({"prompt": "hi", "add_special_tokens": False}, {"messages": MESSAGES}):
            assert END_OF_TEXT not in client.post("/tokenize", json=body).json()["tokens"]
        own = client.post("/tokenize", json={"prompt": "<|endoftext|>hi"}).json()
        assert own["tokens"].count(END_OF_TEXT) == 1  # as completions would take it


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": 1}, 400, "prompt"),
        ("/tokenize", {"model": "nope", "prompt": "a"}, 404, "model"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "tools": [TOOL]}, 400, "tools"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, 400, "add_generation_prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"messages": [{"role": 1, "content": "a"}]}, 400, "messages[0].role"),
        ("/tokenize", {"messages": MESSAGES, "tools": [1]}, 400, "tools[0]"),
        ("/tokenize", {"messages": MESSAGES, "chat_template": "x"}, 400, "chat_template"),
        ("/tokenize", {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}}, 400, "chat_template_kwargs"),
        ("/tokenize", {"messages": MESSAGES, "continue_final_message": True}, 400, "continue_final_message"),
        ("/detokenize", {"tokens": [1, "a"]}, 400, "tokens[1]"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [10**9]}, 400, "tokens"),
        ("/detokenize", {"tokens": [10**30]}, 400, "tokens[0]"),
        ("/detokenize", {"model": "nope", "tokens": []}, 404, "model"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    reply = client.post(path, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)
