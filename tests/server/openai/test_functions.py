"""OpenAI's deprecated functions: asked for, called, whole and streamed, and told back."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.api import Api

WEATHER = {
    "name": "get_weather",
    "description": "The weather now.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIME = {"name": "get_time", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def test_a_call_is_a_function_call(api: Api) -> None:
    (choice,) = api.chat(CALL, functions=[WEATHER, TIME])["choices"]
    call = choice["message"]["function_call"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Oslo"})
    assert (choice["finish_reason"], choice["message"]["content"]) == ("function_call", None)
    assert "tool_calls" not in choice["message"]


def test_a_stream_gives_its_name_and_then_its_arguments(api: Api) -> None:
    chunks = api.chat_chunks(CALL, functions=[WEATHER])
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert [call["name"] for call in calls if "name" in call] == ["get_weather"]
    assert json.loads("".join(call.get("arguments", "") for call in calls)) == {"city": "Oslo"}
    assert not any("tool_calls" in delta for delta in deltas)
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


def test_an_answer_without_a_call_is_as_any_other(api: Api) -> None:
    (choice,) = api.chat("hello", functions=[WEATHER])["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hello", "stop")
    assert "function_call" not in choice["message"]


def test_a_function_may_be_forbidden_or_named(api: Api) -> None:
    (choice,) = api.chat(CALL, functions=[WEATHER], function_call="none")["choices"]
    assert choice["message"]["content"] == CALL
    (choice,) = api.chat("hello", functions=[WEATHER, TIME], function_call={"name": "get_time"})["choices"]
    assert choice["message"]["function_call"]["name"] == "get_time"


def test_there_is_one_call_at_most(api: Api) -> None:
    (choice,) = api.chat(f"{CALL}\n{CALL}", functions=[WEATHER])["choices"]
    assert choice["message"]["function_call"]["name"] == "get_weather"


def test_a_call_and_its_result_are_told_back(make_api: Callable[..., Api]) -> None:
    template = (
        "{{ tools | length }}{% for m in messages %};{{ m.role }}:{{ m.content }}{{ m.tool_call_id }}"
        "{% for c in m.tool_calls or () %}{{ c.id }}{{ c.function.name }}{{ c.function.arguments.city }}{% endfor %}"
        "{% endfor %}<tool_call>"
    )
    messages = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
        },
        {"role": "function", "name": "get_weather", "content": "sunny"},
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
        },
        {"role": "function", "name": "get_weather", "content": "hot"},
    ]
    answer = make_api(chat_template=template).chat(messages=messages, functions=[WEATHER], return_token_ids=True)
    assert bytes(answer["prompt_token_ids"]).decode() == (
        "1;user:weather?;assistant:call_1get_weatherOslo;tool:sunnycall_1"
        ";assistant:call_3get_weatherRome;tool:hotcall_3<tool_call>"
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"functions": [WEATHER], "tools": [{"type": "function", "function": TIME}]}, "functions"),
        ({"functions": [WEATHER], "function_call": "auto", "tool_choice": "auto"}, "function_call"),
        ({"functions": [{"name": "no spaces"}]}, "functions[0].name"),
        ({"functions": [WEATHER, WEATHER]}, "functions[1].name"),
        ({"functions": [WEATHER], "function_call": {"name": "get_time"}}, "function_call.name"),
        ({"functions": [WEATHER], "function_call": "maybe"}, "function_call"),
        ({"function_call": {"name": "f"}}, "function_call"),
        (
            {"messages": [{"role": "user", "content": "", "function_call": {"name": "f", "arguments": ""}}]},
            "messages[0]",
        ),
    ],
)
def test_what_is_wrong_is_named_as_the_client_named_it(api: Api, body: dict[str, Any], param: str) -> None:
    refusal = api.refused_chat(**body)
    assert (refusal.status, refusal.param) == (400, param)
    assert "tool" not in refusal.message.replace("'tools'", "").replace("'tool_choice'", "")
