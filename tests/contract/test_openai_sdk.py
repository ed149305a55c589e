"""OpenAI's own SDK, sync and async, against a server in its own process."""

import asyncio
import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.server.openai_schema import check

MESSAGES: list[Any] = [{"role": "user", "content": "Hello, 🙂!"}]
CALL = '<tool_call>\n{"name": "Weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


class Person(BaseModel):
    name: str
    age: int


class Weather(BaseModel):
    """The weather in a city."""

    city: str


def said(content: str) -> list[Any]:
    return [{"role": "user", "content": content}]


# --- whole answers


def test_a_chat_is_answered(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model="echo", messages=MESSAGES)
    check("CreateChatCompletionResponse", answer.model_dump(mode="json", exclude_unset=True))
    assert answer.choices[0].message.content == "Hello, 🙂!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.total_tokens > 0
    assert answer._request_id


async def test_chats_are_answered_at_once(async_openai_client: openai.AsyncOpenAI) -> None:
    async def ask(text: str) -> str | None:
        answer = await async_openai_client.chat.completions.create(model="echo", messages=said(text))
        return answer.choices[0].message.content

    texts = [f"text {number}" for number in range(20)]
    assert await asyncio.gather(*map(ask, texts)) == texts


def test_logprobs_are_typed(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model="echo", messages=MESSAGES, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert b"".join(bytes(entry.bytes or []) for entry in logprobs.content).decode() == "Hello, 🙂!"
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs.content)


def test_vllms_extras_go_through_the_extra_body(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model="echo", messages=MESSAGES, extra_body={"top_k": 5, "min_tokens": 2, "return_token_ids": True}
    )
    assert answer.model_extra is not None and answer.model_extra["prompt_token_ids"]


def test_a_completion_is_answered(openai_client: openai.OpenAI) -> None:
    answer = openai_client.completions.create(model="echo", prompt=["ab", "cd"], n=2, logprobs=1, echo=True)
    assert [choice.text for choice in answer.choices] == ["abab", "abab", "cdcd", "cdcd"]
    assert answer.choices[0].logprobs is not None


# --- streams


def test_a_chat_is_streamed(openai_client: openai.OpenAI) -> None:
    stream = openai_client.chat.completions.create(
        model="echo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    for chunk in chunks:
        check("CreateChatCompletionStreamResponse", chunk.model_dump(mode="json", exclude_unset=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello, 🙂!"
    assert chunks[-1].usage is not None and chunks[-1].choices == []


async def test_chats_are_streamed_at_once(async_openai_client: openai.AsyncOpenAI) -> None:
    async def ask(text: str) -> str:
        stream = await async_openai_client.chat.completions.create(model="echo", messages=said(text), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    texts = [f"text {number}" for number in range(20)]
    assert await asyncio.gather(*map(ask, texts)) == texts


async def test_a_completion_is_streamed(async_openai_client: openai.AsyncOpenAI) -> None:
    stream = await async_openai_client.completions.create(model="echo", prompt="hello", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "hello"


def test_a_stream_can_be_left_early(openai_client: openai.OpenAI) -> None:
    with openai_client.chat.completions.create(model="echo", messages=said("x" * 500), stream=True) as stream:
        next(iter(stream))
    assert openai_client.chat.completions.create(model="echo", messages=MESSAGES).choices


# --- the SDK's helpers


def test_the_stream_helper_puts_the_answer_together(openai_client: openai.OpenAI) -> None:
    with openai_client.chat.completions.stream(
        model="echo", messages=MESSAGES, n=2, logprobs=True, stream_options={"include_usage": True}
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta", "logprobs.content.done"} <= kinds
    assert [choice.message.content for choice in final.choices] == ["Hello, 🙂!"] * 2
    assert final.usage is not None


async def test_the_stream_helper_parses_what_it_streams(async_openai_client: openai.AsyncOpenAI) -> None:
    async with async_openai_client.chat.completions.stream(
        model="echo", messages=said('{"name": "Ann", "age": 7}'), response_format=Person
    ) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == Person(name="Ann", age=7)


def test_the_stream_helper_gathers_tool_calls(openai_client: openai.OpenAI) -> None:
    with openai_client.chat.completions.stream(
        model="echo", messages=said(CALL), tools=[openai.pydantic_function_tool(Weather)]
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds
    (call,) = final.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == Weather(city="Oslo")
    assert final.choices[0].finish_reason == "tool_calls"


def test_the_parse_helper_gives_an_object(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.parse(
        model="echo", messages=said('{"name": "Ann", "age": 7}'), response_format=Person
    )
    assert answer.choices[0].message.parsed == Person(name="Ann", age=7)


async def test_the_parse_helper_gives_the_arguments_of_calls(async_openai_client: openai.AsyncOpenAI) -> None:
    answer = await async_openai_client.chat.completions.parse(
        model="echo", messages=said(CALL), tools=[openai.pydantic_function_tool(Weather)]
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == Weather(city="Oslo")


def test_a_conversation_with_tools_goes_on(openai_client: openai.OpenAI) -> None:
    tools: list[Any] = [openai.pydantic_function_tool(Weather)]
    messages = said(CALL)
    message = openai_client.chat.completions.create(model="echo", messages=messages, tools=tools).choices[0].message
    assert message.tool_calls
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": json.dumps({"sky": "blue"})}
    messages += [message, result, *said("thanks")]
    answer = openai_client.chat.completions.create(model="echo", messages=messages, tools=tools)
    assert answer.choices[0].message.content == "thanks"


def test_what_the_helpers_made_can_be_sent_back_as_it_is(openai_client: openai.OpenAI) -> None:
    chats, tools = openai_client.chat.completions, [openai.pydantic_function_tool(Weather)]
    asked: dict[str, Any] = {"model": "echo", "messages": said(CALL), "tools": tools}
    with chats.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0].message
    for message in (streamed, chats.parse(**asked).choices[0].message):
        assert message.tool_calls
        said_by_tool: list[Any] = [
            message,
            {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"},
        ]
        messages = said(CALL) + said_by_tool + said("thanks")
        answer = chats.create(model="echo", messages=messages, tools=tools)
        assert answer.choices[0].message.content == "thanks"


# --- refusals


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_the_sdks_errors(openai_client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        openai_client.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=10**6, stream=stream)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as unknown:
        openai_client.chat.completions.create(model="nope", messages=MESSAGES, stream=stream)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
