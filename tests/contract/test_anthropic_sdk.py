"""Anthropic's own SDK, sync and async, against a server in its own process."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import anthropic
import pytest
from anthropic import beta_async_tool, beta_tool
from pydantic import BaseModel

from tests.server.process import ServerProcess
from tests.until import until

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather now.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "cache_control": {"type": "ephemeral"},
}


def said(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


def ask(content: Any = "Hello, 🙂!", **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "max_tokens": 1000, "messages": said(content), **fields}


# --- whole answers


def test_a_message_is_answered(anthropic_client: anthropic.Anthropic) -> None:
    answer = anthropic_client.messages.create(**ask())
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "echo")
    [block] = answer.content
    assert block.type == "text" and block.text == "Hello, 🙂!"
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.id.startswith("msg_") and answer._request_id
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0


async def test_messages_are_answered_at_once(async_anthropic_client: anthropic.AsyncAnthropic) -> None:
    async def answer(text: str) -> str:
        [block] = (await async_anthropic_client.messages.create(**ask(text))).content
        return block.text

    texts = [f"text {number}" for number in range(20)]
    assert await asyncio.gather(*map(answer, texts)) == texts


def test_the_tokens_of_a_prompt_are_counted_as_they_are_used(anthropic_client: anthropic.Anthropic) -> None:
    prompt: dict[str, Any] = {"model": "echo", "messages": said("Hello"), "system": "be brief", "tools": [WEATHER]}
    count = anthropic_client.messages.count_tokens(**prompt).input_tokens
    assert count == anthropic_client.messages.create(max_tokens=1, **prompt).usage.input_tokens
    assert count == anthropic_client.beta.messages.count_tokens(**prompt).input_tokens


def test_a_schema_gives_an_object(anthropic_client: anthropic.Anthropic) -> None:
    class Person(BaseModel):
        name: str
        age: int

    answer = anthropic_client.messages.parse(**ask('{"name": "Ada", "age": 36}'), output_format=Person)
    assert answer.parsed_output == Person(name="Ada", age=36)


# --- streams


def test_a_message_is_streamed_as_events(anthropic_client: anthropic.Anthropic) -> None:
    events = list(anthropic_client.messages.create(**ask(), stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    start, end = events[0], events[-2]
    assert start.type == "message_start" and end.type == "message_delta"
    assert start.message.content == [] and start.message.stop_reason is None
    whole = anthropic_client.messages.create(**ask())
    assert start.message.usage.input_tokens == end.usage.input_tokens == whole.usage.input_tokens
    assert (end.delta.stop_reason, end.usage.output_tokens) == ("end_turn", whole.usage.output_tokens)


def test_the_helper_of_streams_puts_a_message_together(anthropic_client: anthropic.Anthropic) -> None:
    with anthropic_client.messages.stream(**ask("a b c")) as stream:
        assert "".join(stream.text_stream) == "a b c"
        message = stream.get_final_message()
    whole = anthropic_client.messages.create(**ask("a b c"))
    assert message.to_dict() | {"id": ""} == whole.to_dict() | {"id": ""}


async def test_the_helper_of_streams_puts_a_call_together(async_anthropic_client: anthropic.AsyncAnthropic) -> None:
    async with async_anthropic_client.messages.stream(**ask(f"Let me see. {CALL}", tools=[WEATHER])) as stream:
        kinds = {event.type async for event in stream}
        message = await stream.get_final_message()
    assert kinds >= {"text", "input_json", "content_block_stop", "message_stop"}
    text, call = message.content
    assert text.type == "text" and text.text == "Let me see."
    assert call.type == "tool_use" and (call.name, call.input) == ("get_weather", {"city": "Oslo"})
    assert message.stop_reason == "tool_use"


def test_a_stream_can_be_left(anthropic_client: anthropic.Anthropic) -> None:
    with anthropic_client.messages.stream(**ask("long " * 100)) as stream:
        next(iter(stream.text_stream))
    assert anthropic_client.messages.create(**ask()).content


def test_a_silent_stream_is_kept_alive_and_an_error_in_it_is_raised(start_echo: Callable[..., ServerProcess]) -> None:
    server = start_echo(params={"sse_keep_alive_interval": 0.02}, faults={"token_delay": 0.1, "die_after": 2})
    until(server.is_ready)
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    with client, pytest.raises(anthropic.APIStatusError) as failed, client.messages.stream(**ask()) as stream:
        stream.until_done()
    assert failed.value.type == "api_error" and "request_id" in str(failed.value.body)


# --- tools


def test_a_call_is_answered_with_its_result(anthropic_client: anthropic.Anthropic) -> None:
    answer = anthropic_client.messages.create(**ask(CALL, tools=[WEATHER], tool_choice={"type": "auto"}))
    [call] = answer.content
    assert call.type == "tool_use" and call.input == {"city": "Oslo"}
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    messages = [*said(CALL), answer.to_param(), {"role": "user", "content": [result]}]
    answer = anthropic_client.messages.create(**ask(tools=[WEATHER]) | {"messages": messages})
    [block] = answer.content
    assert block.type == "text" and "rain" in block.text
    assert answer.stop_reason == "end_turn"


@pytest.mark.parametrize("stream", [False, True])
def test_the_tool_runner_calls_tools_until_there_is_an_answer(
    anthropic_client: anthropic.Anthropic, stream: bool
) -> None:
    asked: list[str] = []

    @beta_tool
    def get_weather(city: str) -> str:
        """The weather now."""
        asked.append(city)
        return f"rain in {city}"

    runner = anthropic_client.beta.messages.tool_runner(**ask(CALL), tools=[get_weather], stream=stream)
    [block] = runner.until_done().content
    assert asked == ["Oslo"] and block.type == "text" and "rain in Oslo" in block.text


async def test_the_tool_runner_runs_async_and_tells_of_tools_that_fail(
    async_anthropic_client: anthropic.AsyncAnthropic,
) -> None:
    @beta_async_tool
    async def get_weather(city: str) -> str:
        """The weather now."""
        raise ValueError(f"{city} is unknown")

    runner = async_anthropic_client.beta.messages.tool_runner(**ask(CALL), tools=[get_weather])
    [block] = (await runner.until_done()).content
    assert block.type == "text" and "Error" in block.text and "Oslo is unknown" in block.text


# --- as Claude Code asks


def test_what_claude_code_sends_is_answered(anthropic_client: anthropic.Anthropic) -> None:
    """Prompts in marked blocks, tools with whole schemas, thinking, and betas by their names."""
    ephemeral: Any = {"type": "ephemeral"}
    schema = WEATHER["input_schema"] | {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "additionalProperties": False,
    }
    tool: Any = {**WEATHER, "input_schema": schema, "cache_control": ephemeral, "eager_input_streaming": True}
    with anthropic_client.beta.messages.stream(
        model="echo",
        max_tokens=32_000,
        system=[{"type": "text", "text": "You are an agent.", "cache_control": ephemeral}] * 2,
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "<reminder>"}, {"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
            {"role": "user", "content": [{"type": "text", "text": CALL, "cache_control": ephemeral}]},
        ],
        tools=[tool],
        metadata={"user_id": json.dumps({"device_id": "a" * 64, "session_id": "b" * 36})},
        thinking={"type": "adaptive"},
        output_config={"effort": "high"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        betas=["claude-code-20250219", "interleaved-thinking-2025-05-14", "context-management-2025-06-27"],
        extra_headers={"x-app": "cli"},
    ) as stream:
        message = stream.get_final_message()
        told = stream.response.headers["x-ignored-fields"].split(",")
    [call] = message.content
    assert call.type == "tool_use" and call.input == {"city": "Oslo"}
    assert set(told) == {"context_management", "output_config.effort", "anthropic-beta"}


# --- errors


@pytest.mark.parametrize(
    ("fields", "error", "kind"),
    [
        ({"model": "nope"}, anthropic.NotFoundError, "not_found_error"),
        ({"messages": []}, anthropic.BadRequestError, "invalid_request_error"),
        ({"messages": said([{"type": "image", "source": {}}])}, anthropic.BadRequestError, "invalid_request_error"),
        ({"messages": said("a" * 9_000_000)}, anthropic.ContentTooLargeError, "request_too_large"),
    ],
    ids=["model", "empty", "image", "size"],
)
def test_errors_are_of_the_sdks_classes(
    anthropic_client: anthropic.Anthropic, fields: dict[str, Any], error: type[anthropic.APIStatusError], kind: str
) -> None:
    with pytest.raises(error) as raised:
        anthropic_client.messages.create(**ask() | fields)
    assert raised.value.type == kind and raised.value.request_id and raised.value.api_message


def test_refusals_by_key_and_by_load_are_of_the_sdks_classes(start_echo: Callable[..., ServerProcess]) -> None:
    keys = ("ask=infer:key-of-who-asks-0001", "train=train:key-of-who-trains-01")
    params = {"api_key": keys, "key_requests_per_minute": 1}
    server = start_echo(params=params)
    until(server.is_ready)

    def client(**key: Any) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=server.url, max_retries=0, **key)

    with client(api_key="a-key-that-is-not-there") as nobody, pytest.raises(anthropic.AuthenticationError):
        nobody.messages.create(**ask())
    with client(api_key=keys[1].partition(":")[2]) as trainer, pytest.raises(anthropic.PermissionDeniedError):
        trainer.messages.create(**ask())
    with client(api_key=keys[0].partition(":")[2]) as asker:
        assert asker.messages.create(**ask()).content
    with client(auth_token=keys[0].partition(":")[2]) as asker, pytest.raises(anthropic.RateLimitError) as limited:
        asker.messages.create(**ask())
    assert int(limited.value.response.headers["retry-after"]) > 0


def test_a_full_server_is_overloaded(start_echo: Callable[..., ServerProcess]) -> None:
    server = start_echo(engine={"max_requests": 0})
    until(server.is_ready)
    with (
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
        pytest.raises(anthropic.OverloadedError) as full,
    ):
        client.messages.create(**ask())
    assert (full.value.status_code, full.value.type) == (529, "overloaded_error")
