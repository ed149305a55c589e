"""What a request of Anthropic's Messages becomes: the conversation that the chat template sees, and what is asked."""

import json
from typing import Any

import pytest

from engines.errors import InvalidRequest
from server.http.body import parse_json
from server.messages.convert import to_chat
from server.messages.schema import CountRequest, MessageRequest
from server.messages.signatures import hide
from server.messages.words import in_own_words
from server.model.tools import read_tools
from server.openai.schema import ChatRequest

USER = {"role": "user", "content": "hi"}
WEATHER = {
    "name": "get_weather",
    "description": "The weather now.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Malmö"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def converted(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    body = {"model": "m", "max_tokens": 5, "messages": list(messages or [USER]), **fields}
    return to_chat(parse_json(MessageRequest, json.dumps(body).encode()))


def messages_of(*messages: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return [message.model_dump(exclude_unset=True) for message in converted(*messages, **fields).messages]


def refusal(*messages: dict[str, Any], **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        converted(*messages, **fields)
    return refused.value


FORMAT = {"type": "json_schema", "schema": {"type": "object"}}


# --- messages


def test_a_text_is_content_and_so_is_a_block_of_text() -> None:
    assert messages_of(USER) == messages_of({"role": "user", "content": [text("hi")]}) == [USER]


def test_the_system_prompt_is_the_first_message() -> None:
    assert messages_of(USER, system="be brief") == [{"role": "system", "content": "be brief"}, USER]
    blocks = [text("You are", cache_control={"type": "ephemeral", "ttl": "1h"}), text("brief")]
    [system, _] = messages_of(USER, system=blocks)
    assert system == {"role": "system", "content": "You are\nbrief"}


@pytest.mark.parametrize("none", ["", [], None])
def test_without_a_system_prompt_there_is_no_system_message(none: object) -> None:
    assert messages_of(USER, system=none) == [USER]


def test_a_system_message_stays_where_it_is() -> None:
    assert messages_of(USER, {"role": "system", "content": "now in French"}, USER)[1]["role"] == "system"


def test_what_one_role_says_in_a_row_is_one_message() -> None:
    assert messages_of(
        USER, {"role": "user", "content": [text("there")]}, {"role": "assistant", "content": "a"}, USER
    ) == [
        {"role": "user", "content": "hi\nthere"},
        {"role": "assistant", "content": "a"},
        USER,
    ]


def test_a_turn_may_be_of_very_many_blocks() -> None:
    [message] = messages_of(*[{"role": "user", "content": [text("a")] * 2000}] * 3)
    assert message["content"] == "\n".join("a" * 6000)


def test_calls_and_their_results_are_messages_of_the_assistant_and_of_tools() -> None:
    said = {"role": "assistant", "content": [text("Let me see."), CALL, {**CALL, "id": "toolu_2"}]}
    results = {"role": "user", "content": [text("go on"), RESULT, {**RESULT, "tool_use_id": "toolu_2"}]}
    function = {"name": "get_weather", "arguments": '{"city":"Malmö"}'}
    assert messages_of(USER, said, results) == [
        USER,
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [{"id": id, "type": "function", "function": function} for id in ("toolu_1", "toolu_2")],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "rain"},
        {"role": "user", "content": "go on"},
    ]


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"content": "rain"}, "rain"),
        ({"content": [text("rain")]}, "rain"),
        ({"content": [text("rain"), text("wind")]}, "rain\nwind"),
        ({}, ""),
        ({"content": []}, ""),
        ({"content": "no such city", "is_error": True}, "Error: no such city"),
        ({"content": [text("no such"), text("city")], "is_error": True}, "Error: no such\ncity"),
        ({"content": "error 404", "is_error": True}, "error 404"),
    ],
)
def test_a_result_says_what_it_is(block: dict[str, Any], said: object) -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1", **block}
    *_, last = messages_of(USER, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [result]})
    assert last == {"role": "tool", "tool_call_id": "toolu_1", "content": said}


def test_thinking_comes_back_as_reasoning() -> None:
    thinking = [
        {"type": "thinking", "thinking": "2 + 2", "signature": "of Anthropic"},
        {"type": "redacted_thinking", "data": "sealed"},
        {"type": "thinking", "thinking": "", "signature": hide("is 4")},
        {"type": "thinking", "thinking": "", "signature": "of Anthropic"},
    ]
    [_, said, _] = messages_of(USER, {"role": "assistant", "content": [*thinking, text("Four.")]}, USER)
    assert said == {"role": "assistant", "content": "Four.", "reasoning_content": "2 + 2\nis 4"}


@pytest.mark.parametrize("signature", ["", "tuneserve:", "tuneserve:!", "tuneserve:/w=="])
def test_a_signature_without_thinking_is_none(signature: str) -> None:
    thinking = {"type": "thinking", "thinking": "", "signature": signature}
    [_, said, _] = messages_of(USER, {"role": "assistant", "content": [thinking, text("Four.")]}, USER)
    assert said == {"role": "assistant", "content": "Four."}


def test_a_final_message_of_the_assistant_is_continued() -> None:
    chat = converted(USER, {"role": "assistant", "content": "The best"})
    assert chat.continue_final_message
    assert not converted(USER).continue_final_message
    assert "text to continue" in refusal(USER, {"role": "assistant", "content": ""}).message
    assert "tool_result" in refusal(USER, {"role": "assistant", "content": [text("a"), CALL]}).message


@pytest.mark.parametrize(
    ("message", "param", "named"),
    [
        ({"role": "user", "content": [{"type": "image", "source": {}}]}, "messages[0].content[0]", "'image'"),
        ({"role": "user", "content": [{"type": "document"}]}, "messages[0].content[0]", "'document'"),
        ({"role": "user", "content": [{"type": "search_result"}]}, "messages[0].content[0]", "'search_result'"),
        ({"role": "assistant", "content": [{"type": "server_tool_use"}]}, "messages[0].content[0]", "server_tool_use"),
        ({"role": "user", "content": [{"text": "a"}]}, "messages[0].content[0]", "type"),
        ({"role": "user", "content": [CALL]}, "messages[0].content[0].type", "'tool_use'"),
        ({"role": "assistant", "content": [RESULT]}, "messages[0].content[0].type", "'tool_result'"),
        (
            {"role": "user", "content": [{**RESULT, "content": [{"type": "image"}]}]},
            "messages[0].content[0].content[0]",
            "'image'",
        ),
        (
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f"}]},
            "messages[0].content[0].input",
            "input",
        ),
        ({"role": "tool", "content": "a"}, "messages[0].role", "'user'"),
        ({"role": "user"}, "messages[0].content", "content"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(message: dict[str, Any], param: str, named: str) -> None:
    refused = refusal(message)
    assert refused.param == param and named in refused.message


# --- tools


def test_a_tool_is_a_function() -> None:
    chat = converted(tools=[{**WEATHER, "type": "custom", "strict": True, "cache_control": {"type": "ephemeral"}}])
    function = {
        "name": "get_weather",
        "description": "The weather now.",
        "parameters": WEATHER["input_schema"],
        "strict": True,
    }
    assert chat.tools == [{"type": "function", "function": function}]
    assert converted(tools=[]).tools is None
    assert read_tools(converted(tools=[{**WEATHER, "name": "mcp__" + "a" * 123}]).tools).tools


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "get_weather"}, {"type": "function", "function": {"name": "get_weather"}}),
    ],
)
def test_a_choice_of_tools(choice: dict[str, Any], expected: object) -> None:
    chat = converted(tools=[WEATHER], tool_choice=choice)
    assert (chat.tool_choice, chat.parallel_tool_calls) == (expected, None)
    chat = converted(tools=[WEATHER], tool_choice={**choice, "disable_parallel_tool_use": True})
    assert (chat.tool_choice, chat.parallel_tool_calls) == (expected, False)


@pytest.mark.parametrize("kind", ["web_search_20250305", "bash_20250124", "text_editor_20250728", "computer_20250124"])
def test_tools_that_anthropic_defines_are_refused_by_their_names(kind: str) -> None:
    refused = refusal(tools=[WEATHER, {"type": kind, "name": "a"}])
    assert refused.param == "tools[1]" and repr(kind) in refused.message


# --- what an answer should be


def test_sampling_goes_over() -> None:
    chat = converted(temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["x"], stream=True)
    assert (chat.temperature, chat.top_p, chat.top_k, chat.stop, chat.stream) == (0.5, 0.9, 5, ["x"], True)
    plain = converted(stop_sequences=[])
    assert not converted(stop_sequences=[""]).stop
    assert plain.model_fields_set == {"model", "messages", "stream"}


def test_thinking_asks_the_template_to_reason_or_not_to() -> None:
    enabled = converted(thinking={"type": "enabled", "budget_tokens": 1024})
    assert enabled.chat_template_kwargs == {"enable_thinking": True, "thinking": True}
    assert enabled.thinking_token_budget == 1024
    assert converted(thinking={"type": "adaptive"}).chat_template_kwargs == enabled.chat_template_kwargs
    assert converted(thinking={"type": "disabled"}).reasoning_effort == "none"
    effort = converted(thinking={"type": "adaptive"}, output_config={"effort": "low"})
    assert effort.reasoning_effort == "low"


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_a_format_of_the_output_is_a_schema_that_it_keeps_to(place: str) -> None:
    wanted = {"type": "json_schema", "schema": SCHEMA}
    chat = converted(**{place: {"format": wanted} if place == "output_config" else wanted})
    assert chat.response_format["json_schema"]["schema"] == SCHEMA


# --- the rest


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"container": "container_1"}, "container"),
        ({"mcp_servers": [{"type": "url", "url": "https://a.example", "name": "a"}]}, "mcp_servers"),
        ({"compaction": {"type": "summarize"}}, "compaction"),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "context_management.edits"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"output_format": FORMAT, "output_config": {"format": FORMAT}}, "output_format"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 2.5}, "temperature"),
        ({"stop_sequences": ["a" * 1025]}, "stop_sequences[0]"),
        ({"stop_sequences": ["a"] * 65}, "stop_sequences"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_what_asks_for_nothing_is_no_reason_to_refuse() -> None:
    converted(
        container=None, mcp_servers=[], thread=None, metadata={"user_id": "u"}, cache_control={"type": "ephemeral"}
    )


def test_edits_that_cannot_be_read_are_not_followed_either() -> None:
    wrong: list[Any] = [None, {}, [], [1], [{"type": 1}], "compact"]
    for edits in wrong:
        converted(context_management={"edits": edits})


def test_what_has_no_effect_is_told() -> None:
    told = converted(
        speed="fast",
        fallbacks=[{"model": "other"}],
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )
    assert set(told.ignored) == {"speed", "fallbacks", "context_management"}
    assert not converted(metadata={"user_id": "u"}, service_tier="auto").ignored


def test_a_count_takes_what_makes_the_prompt() -> None:
    body = {"model": "m", "messages": [USER], "system": "be brief", "tools": [WEATHER]}
    counted = to_chat(parse_json(CountRequest, json.dumps(body).encode()))
    assert counted.messages == converted(USER, system="be brief").messages


@pytest.mark.parametrize(
    ("param", "own"),
    [
        ("tools[3].function.parameters.properties", "tools[3].input_schema.properties"),
        ("tools[3].function.name", "tools[3].name"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("response_format.json_schema.schema", "output_config.format.schema"),
        ("stop", "stop_sequences"),
        ("stop[1]", "stop_sequences[1]"),
        ("reasoning_effort", "output_config.effort"),
        ("messages", "messages"),
        (None, None),
    ],
)
def test_errors_name_the_fields_that_the_client_gave(param: str | None, own: str | None) -> None:
    with pytest.raises(InvalidRequest) as raised, in_own_words():
        raise InvalidRequest(f"'{param}' is wrong", param=param)
    assert (raised.value.param, raised.value.message) == (own, f"'{own}' is wrong")
