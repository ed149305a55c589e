"""What is refused of a request for a response, by the names that this API has for it."""

from typing import Any

import pytest

from tests.server.api import Api
from tests.server.responses.said import WEATHER, message

SCHEMA = {"type": "json_schema", "name": "a", "schema": {"type": "nonsense"}}


@pytest.mark.parametrize(
    "field",
    [
        {"prompt": {"id": "pmpt_1"}},
        {"context_management": [{"type": "compaction"}]},
        {"moderation": {"model": "m"}},
    ],
)
def test_what_is_not_here_is_refused_by_its_name(api: Api, field: dict[str, Any]) -> None:
    refusal = api.refused_response(**field)
    assert (refusal.status, refusal.code, refusal.param) == (400, "unsupported_parameter", next(iter(field)))


@pytest.mark.parametrize("kind", ["web_search", "file_search", "computer", "code_interpreter", "image_generation"])
@pytest.mark.parametrize("tool", [{}, {"name": "x"}])
def test_tools_of_the_server_are_refused(api: Api, kind: str, tool: dict[str, Any]) -> None:
    refusal = api.refused_response(tools=[WEATHER, {"type": kind, **tool}])
    assert (refusal.code, refusal.param) == ("unsupported_parameter", "tools[1].type")
    assert repr(kind) in refusal.message


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio"])
def test_what_is_no_text_is_refused(api: Api, kind: str) -> None:
    refusal = api.refused_response(input=[message("user", [{"type": "input_text", "text": "a"}, {"type": kind}])])
    assert (refusal.status, refusal.param) == (400, "input[0].content[1]")
    assert f"{kind!r} is not supported: this model reads text only" in refusal.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0]"),
        ({"input": [message("robot", "a")]}, "input[0].role"),
        ({"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "input[0].name"),
        ({"input": [message("user", 3)]}, "input[0].content"),
        ({"input": 3}, "input"),
        ({"previous_response_id": "resp_\0"}, "previous_response_id"),
        ({"conversation": {"id": "conv_\0"}}, "conversation.id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 1_000_000}, "input"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"include": ["everything"]}, "include[0]"),
        ({"tools": "all"}, "tools"),
        ({"tools": [3]}, "tools[0]"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [WEATHER | {"parameters": {"type": "string"}}]}, "tools[0].parameters"),
        ({"tools": [WEATHER | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "x"}]},
            },
            "tool_choice.tools[0].name",
        ),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"format": SCHEMA}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"reasoning": {"effort": "heroic"}}, "reasoning.effort"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"truncation": "often"}, "truncation"),
        ({"temperature": 3}, "temperature"),
        ({"priority": "low"}, "priority"),
    ],
)
def test_faults_are_named_as_this_api_names_them(api: Api, body: dict[str, Any], param: str) -> None:
    refusal = api.refused_response(**body)
    assert (refusal.status, refusal.param) == (400, param), refusal.message
    assert "messages" not in refusal.message and "response_format" not in refusal.message


def test_conversations_are_not_compacted(api: Api) -> None:
    reply = api.post("/v1/responses/compact", model="echo", input="hello")
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_parameter")


# --- counting


def test_tokens_are_counted_as_a_response_counts_them(api: Api) -> None:
    for body in ({}, {"instructions": "Be brief.", "tools": [WEATHER]}):
        counted = api.post("/v1/responses/input_tokens", model="echo", input="hello", **body).json()
        used = api.respond("hello", **body)["usage"]["input_tokens"]
        assert counted == {"object": "response.input_tokens", "input_tokens": used}
    assert api.post("/v1/responses/input_tokens", input="hello").json()["input_tokens"] > 0


def test_what_is_too_long_to_answer_can_be_counted(api: Api) -> None:
    counted = api.post("/v1/responses/input_tokens", model="echo", input="x" * 20_000).json()
    assert counted["input_tokens"] > 20_000
