"""Tools, reasoning and response formats in chat completions, on an engine that says the last message back."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.api import Api, text_of

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
TIME_CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def message_of(answer: dict[str, Any]) -> dict[str, Any]:
    (choice,) = answer["choices"]
    return choice["message"]


def reason_of(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["finish_reason"]


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]


def streamed_message(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client puts together."""
    message: dict[str, Any] = {"content": "", "tool_calls": [], "reasoning_content": ""}
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"]
        message["content"] += delta.get("content") or ""
        message["reasoning_content"] += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", []):
            if "id" in call:
                assert call["index"] == len(message["tool_calls"])
                message["tool_calls"].append({"id": call["id"], "function": {**call["function"], "arguments": ""}})
            message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return message


# --- tool calls


def test_a_call_in_the_output_is_a_tool_call(api: Api) -> None:
    answer = api.chat(CALL, tools=[WEATHER])
    message = message_of(answer)
    assert calls_of(message) == [("get_weather", {"city": "Oslo"})]
    assert (message["content"], message["refusal"]) == (None, None)
    assert reason_of(answer) == "tool_calls"


def test_text_before_a_call_is_content(api: Api) -> None:
    message = message_of(api.chat("Let me see.\n" + CALL, tools=[WEATHER]))
    assert message["content"].strip() == "Let me see."
    assert calls_of(message) == [("get_weather", {"city": "Oslo"})]


def test_several_calls_are_told_in_order(api: Api) -> None:
    body = {"tools": [WEATHER, TIME]}
    expected = [("get_weather", {"city": "Oslo"}), ("get_time", {})]
    message = message_of(api.chat(f"{CALL}\n{TIME_CALL}", **body))
    assert calls_of(message) == expected
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert calls_of(streamed_message(api.chat_chunks(f"{CALL}\n{TIME_CALL}", **body))) == expected


def test_without_parallel_calls_the_output_ends_after_the_first(api: Api) -> None:
    body = {"tools": [WEATHER, TIME], "parallel_tool_calls": False}
    answer = api.chat(f"{CALL}\n{TIME_CALL}", **body)
    assert calls_of(message_of(answer)) == [("get_weather", {"city": "Oslo"})]
    assert reason_of(answer) == "tool_calls"
    assert answer["usage"]["completion_tokens"] < len(f"{CALL}\n{TIME_CALL}")
    chunks = api.chat_chunks(f"{CALL}\n{TIME_CALL}", **body)
    assert calls_of(streamed_message(chunks)) == [("get_weather", {"city": "Oslo"})]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_streamed_call_begins_with_id_and_name_and_its_arguments_follow(api: Api) -> None:
    chunks = api.chat_chunks(CALL, tools=[WEATHER])
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert calls[0]["id"] and calls[0]["type"] == "function"
    assert calls[0]["function"]["name"] == "get_weather"
    assert len(calls) > 2
    assert all(set(call) == {"index", "function"} for call in calls[1:])
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Oslo"}
    assert text_of(chunks) == ""
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_tool_choice_none_leaves_the_text_alone(api: Api) -> None:
    answer = api.chat(CALL, tools=[WEATHER], tool_choice="none")
    assert message_of(answer)["content"] == CALL
    assert "tool_calls" not in message_of(answer)
    assert reason_of(answer) == "stop"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=["required", "named"]
)
def test_a_call_that_must_be_made_is_made_whatever_the_model_wants(api: Api, choice: dict[str, Any] | str) -> None:
    answer = api.chat("I would rather not.", tools=[WEATHER], tool_choice=choice, max_tokens=400)
    ((name, arguments),) = calls_of(message_of(answer))
    assert name == "get_weather"
    assert set(arguments) <= {"city", "days"} and isinstance(arguments["city"], str)
    assert reason_of(answer) == "tool_calls"


def test_the_template_shows_the_tools_and_the_calls_made(api: Api) -> None:
    messages = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    answer = api.chat(messages=messages, tools=[WEATHER], return_token_ids=True)
    prompt = bytes(token for token in answer["prompt_token_ids"] if token < 256).decode()
    assert '"get_weather"' in prompt and CALL in prompt and "sunny" in prompt


@pytest.mark.parametrize("arguments", [{}, {"arguments": None}, {"arguments": ""}, {"arguments": "{}"}])
def test_a_call_that_comes_back_without_arguments_has_none(api: Api, arguments: dict[str, Any]) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_time"} | arguments}
    messages = [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    answer = api.chat(messages=messages, return_token_ids=True)
    prompt = bytes(token for token in answer["prompt_token_ids"] if token < 256).decode()
    assert TIME_CALL in prompt


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}, None),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_tools_that_are_none_are_refused(api: Api, body: dict[str, Any], param: str | None) -> None:
    refusal = api.refused_chat(**body)
    assert refusal.status == 400
    assert refusal.param == param or (param is None and refusal.param.startswith("tool_choice"))


HARMONY = (
    "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
    '<|constrain|>json<|message|>{"city": "Oslo", "days": 2}<|call|>'
)
TAGS = (
    "<think>hm</think><tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n2\n"
    "</parameter>\n</function>\n</tool_call>"
)


@pytest.mark.parametrize(
    ("text", "parsers"),
    [
        (HARMONY, {"tool_call_parser": "openai", "reasoning_parser": "openai_gptoss"}),
        (TAGS, {"tool_call_parser": "qwen3_coder", "reasoning_parser": "deepseek_r1"}),
    ],
)
def test_calls_in_other_forms_than_json_come_alike_streamed_or_not(
    make_api: Callable[..., Api], text: str, parsers: dict[str, str]
) -> None:
    api = make_api(**parsers)
    answer = api.chat(text, tools=[WEATHER])
    streamed = streamed_message(api.chat_chunks(text, tools=[WEATHER]))
    for message in (message_of(answer), streamed):
        assert calls_of(message) == [("get_weather", {"city": "Oslo", "days": 2})]
        assert message["reasoning_content"] == "hm"
        assert not message["content"]
    assert reason_of(answer) == "tool_calls"
    required = api.chat(text, tools=[WEATHER], tool_choice="required", max_tokens=300)
    assert [name for name, _ in calls_of(message_of(required))] == ["get_weather"]


MADE_UP = {
    "react_en": '\nAction: get_weather\nAction Input: {"city": "Oslo", "days": 2}\nObservation: it rains',
    "toolbench": '\nAction: get_weather\nAction Input: {"city": "Oslo", "days": 2}\nObservation: it rains',
    "glm4": '<|assistant|>get_weather\n{"city": "Oslo", "days": 2}<|observation|>\nit rains',
}


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", MADE_UP)
def test_a_result_that_the_model_makes_up_behind_its_call_is_left_out(
    make_api: Callable[..., Api], name: str, parallel: bool
) -> None:
    text = f"Thought: I look.{MADE_UP[name]}"
    api = make_api(tools_prompt=name)
    asked: dict[str, Any] = {"tools": [WEATHER], "parallel_tool_calls": parallel}
    answer = api.chat(text, **asked)
    for message in (message_of(answer), streamed_message(api.chat_chunks(text, **asked))):
        assert calls_of(message) == [("get_weather", {"city": "Oslo", "days": 2})]
        assert message["content"] == "Thought: I look."
    assert reason_of(answer) == "tool_calls"


# --- reasoning


def test_reasoning_is_told_apart_and_counted(make_api: Callable[..., Api]) -> None:
    api = make_api(reasoning_parser="deepseek_r1")
    text = "<think>\nhm, well\n</think>\n\nHello."
    answer = api.chat(text)
    message = message_of(answer)
    assert (message["reasoning_content"], message["content"]) == ("hm, well", "Hello.")
    reasoning = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < reasoning < answer["usage"]["completion_tokens"]
    chunks = api.chat_chunks(text, stream_options={"include_usage": True})
    streamed = streamed_message(chunks[:-1])
    assert (streamed["reasoning_content"], streamed["content"]) == ("hm, well", "Hello.")
    assert chunks[-1]["usage"] == answer["usage"]


# --- response formats


def test_json_object_gives_a_json_object(api: Api) -> None:
    answer = api.chat('{"a": 1} and more', response_format={"type": "json_object"}, max_tokens=200)
    assert isinstance(json.loads(message_of(answer)["content"]), dict)


def test_json_schema_gives_what_fits_the_schema(api: Api) -> None:
    answer = api.chat(
        '{"name": "Ann", "age": 7, "more": true}',
        response_format={"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}},
        max_tokens=200,
        logprobs=True,
    )
    assert json.loads(message_of(answer)["content"]) == {"name": "Ann", "age": 7}
    entries = answer["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == message_of(answer)["content"]


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        ({"regex": "[a-z]{3}"}, "yes"),
        ({"choice": ["yes", "no"]}, "yes"),
        ({"grammar": 'start: "yes" | "no"'}, "yes"),
        ({"json": {"const": "yes"}}, '"yes"'),
    ],
)
def test_structured_outputs_constrain_chat_and_completions(api: Api, constraint: dict[str, Any], expected: str) -> None:
    assert message_of(api.chat("yes, of course", structured_outputs=constraint))["content"] == expected
    (choice,) = api.complete("yes, of course", structured_outputs=constraint)["choices"]
    assert choice["text"] == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
        ),
    ],
)
def test_constraints_that_cannot_be_enforced_are_refused(api: Api, body: dict[str, Any], param: str) -> None:
    for refusal in (api.refused_chat(**body), api.refused_completion(**body)):
        assert (refusal.status, refusal.param) == (400, param)
