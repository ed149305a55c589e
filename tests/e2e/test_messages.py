"""Anthropic's Messages with the demo model, through the SDK: the same answers as chat completions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic

from tests.server.api import Api, api_of
from tests.server.process import ServerProcess
from tests.until import PATIENCE

pytestmark = pytest.mark.demo

MODEL = "SmolLM2-135M-Instruct"
WEATHER: Any = {
    "name": "get_weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture(scope="module")
def server(demo_model: Path) -> Iterator[ServerProcess]:
    with ServerProcess.ready("--model", str(demo_model), "--threads", "1", "--max_model_len", "1024") as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def api(server: ServerProcess) -> Iterator[Api]:
    with api_of(server) as api:
        yield api


def ask(text: str = "What is the capital of France?", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "max_tokens": 30, "messages": messages, "extra_body": {"temperature": 0}, **fields}


def test_the_answer_is_that_of_chat_completions(client: Anthropic, api: Api) -> None:
    [block] = client.messages.create(**ask()).content
    chat = api.chat(messages=ask()["messages"], model=MODEL, temperature=0, max_tokens=30)
    assert block.type == "text" and "Paris" in block.text
    assert block.text == chat["choices"][0]["message"]["content"]


def test_a_stream_is_the_answer_in_pieces_and_its_prompt_comes_from_the_cache(client: Anthropic) -> None:
    question = "Name a colour of the flag of France, and tell me why it is there. " * 4
    whole = client.messages.create(**ask(question))
    with client.messages.stream(**ask(question)) as stream:
        message = stream.get_final_message()
    assert message.content[0].to_dict() == whole.content[0].to_dict()
    assert message.usage.cache_read_input_tokens > 0
    count = client.messages.count_tokens(model=MODEL, messages=ask(question)["messages"]).input_tokens
    for usage in (whole.usage, message.usage):
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == count


def test_a_final_message_of_the_assistant_is_continued(client: Anthropic) -> None:
    messages = [*ask()["messages"], {"role": "assistant", "content": "The capital of France is"}]
    [block] = client.messages.create(**ask(max_tokens=4) | {"messages": messages}).content
    assert block.type == "text" and block.text.strip().startswith("Paris")


def test_a_tool_that_must_be_used_is_used(client: Anthropic) -> None:
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    message = client.messages.create(**ask("How is the weather in Rome?", tools=[WEATHER], tool_choice=choice))
    [call] = message.content
    assert call.type == "tool_use" and call.input["city"] in ("Oslo", "Rome")
    assert message.stop_reason == "tool_use"


def test_a_schema_holds(client: Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"enum": ["Oslo", "Paris"]}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    [block] = client.messages.create(**ask(output_config={"format": {"type": "json_schema", "schema": schema}})).content
    assert block.type == "text" and json.loads(block.text)["capital"] in ("Oslo", "Paris")
