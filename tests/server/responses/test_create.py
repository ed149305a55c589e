"""Responses as OpenAI describes them, whole: `Api.respond` holds each to the description."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.server.api import Api
from tests.server.responses.said import CALL, THOUGHT, WEATHER, message, text_of, without_ids


def test_a_text_is_answered_by_one_message(api: Api) -> None:
    response = api.respond("hello")
    assert response["id"].startswith("resp_") and response["status"] == "completed"
    part = {"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}
    (item,) = response["output"]
    assert item["id"].startswith("msg_")
    assert without_ids([item]) == [{"type": "message", "status": "completed", "role": "assistant", "content": [part]}]


def test_the_response_says_what_was_asked_for(api: Api) -> None:
    asked: dict[str, Any] = {
        "instructions": "Be brief.",
        "max_output_tokens": 40,
        "max_tool_calls": 3,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": "s",
        "temperature": 0.5,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [WEATHER | {"description": "Tells it.", "strict": True}],
        "top_logprobs": 0,
        "top_p": 0.9,
        "truncation": "auto",
        "user": "u",
    }
    response = api.respond("hello", **asked)
    assert {name: response[name] for name in asked} == asked
    assert response["model"] == "echo" and response["created_at"] <= response["completed_at"]


def test_defaults_are_those_of_the_server(make_api: Callable[..., Api]) -> None:
    response = make_api(temperature=0.25, generation_config={"top_p": 0.5}).respond("hello")
    assert (response["temperature"], response["top_p"]) == (0.25, 0.5)


def test_usage_counts_input_and_output(api: Api) -> None:
    usage = api.respond("hello")["usage"]
    chat = api.chat("hello")["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (chat["prompt_tokens"], chat["completion_tokens"])
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens_details"]["cached_tokens"] == 0
    assert usage["output_tokens_details"]["reasoning_tokens"] == 0


def test_a_response_that_is_cut_short_says_why(api: Api) -> None:
    response = api.respond("hello", max_output_tokens=2)
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["output"][0]["status"] == "incomplete" and text_of(response) == "he"
    assert response["completed_at"] is None


def test_an_answer_without_a_word_is_an_empty_message(api: Api) -> None:
    response = api.respond([message("user", "")])
    assert (response["status"], text_of(response), len(response["output"])) == ("completed", "", 1)


@pytest.mark.parametrize("asked", [{"include": ["message.output_text.logprobs"]}, {"top_logprobs": 2}])
def test_logprobs_come_with_the_text(api: Api, asked: dict[str, Any]) -> None:
    (part,) = api.respond("a🙂b", **asked)["output"][0]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode() == "a🙂b"
    assert {len(entry["top_logprobs"]) for entry in part["logprobs"]} == {asked.get("top_logprobs", 0)}


def test_what_has_no_effect_is_told_by_its_name(api: Api) -> None:
    include = ["web_search_call.results", "reasoning.encrypted_content"]
    body = {"model": "echo", "input": "a", "max_tool_calls": 2, "include": include, "text": {"verbosity": "low"}}
    told = api.post("/v1/responses", **body, novelty=1).headers["x-ignored-fields"].split(",")
    assert set(told) == {"novelty", "max_tool_calls", "include", "text.verbosity"}
    assert "x-ignored-fields" not in api.post("/v1/responses", model="echo", input="a", include=include[1:]).headers


# --- reasoning


def test_reasoning_is_an_item_before_the_message(make_api: Callable[..., Api]) -> None:
    response = make_api(reasoning_parser="deepseek_r1").respond(THOUGHT)
    reasoning, said = response["output"]
    assert reasoning["id"].startswith("rs_")
    assert without_ids([reasoning]) == [
        {
            "type": "reasoning",
            "status": "completed",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm, well"}],
        }
    ]
    assert said["content"][0]["text"] == "Hello."
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


@pytest.mark.parametrize("field", ["summary", "generate_summary"])
def test_where_a_summary_is_asked_for_the_reasoning_is_one(make_api: Callable[..., Api], field: str) -> None:
    response = make_api(reasoning_parser="deepseek_r1").respond(THOUGHT, reasoning={field: "auto"})
    assert response["output"][0]["summary"] == [{"type": "summary_text", "text": "hm, well"}]
    assert response["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm, well"}]
    assert response["reasoning"] == {"effort": None, "summary": "auto"}


def test_reasoning_alone_is_followed_by_an_empty_message(make_api: Callable[..., Api]) -> None:
    response = make_api(reasoning_parser="deepseek_r1").respond("<think>\nhm")
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]


# --- tools


def test_a_call_is_an_item(api: Api) -> None:
    (item,) = api.respond(CALL, tools=[WEATHER])["output"]
    assert item["id"].startswith("fc_") and item["call_id"].startswith("call_")
    assert without_ids([item]) == [
        {"type": "function_call", "status": "completed", "name": "weather", "arguments": '{"city": "Oslo"}'}
    ]


def test_calls_come_side_by_side_unless_one_is_wanted(api: Api) -> None:
    assert len(api.respond(CALL + CALL, tools=[WEATHER])["output"]) == 2
    assert len(api.respond(CALL + CALL, tools=[WEATHER], parallel_tool_calls=False)["output"]) == 1


def test_tools_have_the_shape_of_this_api(api: Api) -> None:
    (tool,) = api.respond("hello", tools=[{"type": "function", "name": "now"}])["tools"]
    assert tool == {"type": "function", "name": "now", "description": None, "parameters": None, "strict": False}
    assert api.respond("hello", tools=[])["tools"] == []


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
    ],
)
def test_a_tool_can_be_required(api: Api, choice: Any) -> None:
    response = api.respond("hello", tools=[WEATHER, WEATHER | {"name": "other"}], tool_choice=choice)
    assert response["tool_choice"] == choice
    assert response["output"][0]["type"] == "function_call"


def test_without_a_choice_calls_are_text(api: Api) -> None:
    response = api.respond(CALL, tools=[WEATHER], tool_choice="none")
    assert text_of(response) == CALL


# --- formats


def test_a_schema_constrains_the_text(api: Api) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "name": "A", "schema": schema, "strict": True}
    response = api.respond("hello", text={"format": form})
    assert response["text"]["format"] == form
    assert text_of(response).startswith("{")
    assert text_of(api.respond("hello", text={"format": {"type": "json_object"}})).startswith("{")
