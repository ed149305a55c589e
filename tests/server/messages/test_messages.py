"""POST /v1/messages and /v1/messages/count_tokens, byte by byte, on an engine that says the last message back."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from engines.echo import EchoEngine, EchoFaults
from tests.server.api import Api, succeeded

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
TIME_CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
TOOLS = [{"name": name, "input_schema": {"type": "object"}} for name in ("get_weather", "get_time")]
THOUGHT = "<think>\nhm, well\n</think>\n\nHello."
DELTAS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}
"""The field of each kind of delta that adds to a block."""
FIELDS = DELTAS | {"input_json_delta": "input"}
"""The field of the block that it adds to."""
Event = dict[str, Any]


def body(content: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "max_tokens": 1000, "messages": [{"role": "user", "content": content}], **fields}


def message(api: Api, content: str = "hello", **fields: Any) -> dict[str, Any]:
    return succeeded(api.http.post("/v1/messages", json=body(content, **fields)))


def events(api: Api, content: str = "hello", **fields: Any) -> list[Event]:
    """The events of a stream, each with its name in a line of its own."""
    reply = api.http.post("/v1/messages", json=body(content, stream=True, **fields))
    assert reply.status_code == 200, reply.text
    told = [each.split("\n") for each in reply.text.removesuffix("\n\n").split("\n\n")]
    found = [json.loads(data.removeprefix("data: ")) for _, data in told]
    assert [name for name, _ in told] == [f"event: {event['type']}" for event in found]
    return found


def content_of(events: list[Event]) -> list[dict[str, Any]]:
    """The blocks that a client puts together, of which one grows at a time."""
    blocks: list[dict[str, Any]] = []
    growing: int | None = None
    for event in events:
        if event["type"] == "content_block_start":
            assert growing is None and event["index"] == len(blocks)
            growing = event["index"]
            blocks.append(event["content_block"] | ({"input": ""} if "input" in event["content_block"] else {}))
        elif event["type"] == "content_block_delta":
            assert event["index"] == growing
            delta = event["delta"]
            blocks[-1][FIELDS[delta["type"]]] += delta[DELTAS[delta["type"]]]
        elif event["type"] == "content_block_stop":
            assert event["index"] == growing
            growing = None
    assert growing is None
    return [block | {"input": json.loads(block["input"])} if "input" in block else block for block in blocks]


def without_ids(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in block.items() if key != "id"} for block in blocks]


def both(api: Api, content: str, **fields: Any) -> list[dict[str, Any]]:
    """The content of a whole answer, which the one of a stream is as well."""
    whole = message(api, content, **fields)
    streamed = events(api, content, **fields)
    assert without_ids(content_of(streamed)) == without_ids(whole["content"])
    [end] = [event for event in streamed if event["type"] == "message_delta"]
    assert end["delta"] == {name: whole[name] for name in ("stop_reason", "stop_sequence", "stop_details")}
    assert end["usage"] == whole["usage"]
    return whole["content"]


# --- content


def test_a_message_has_the_fields_of_anthropics(api: Api) -> None:
    answer = message(api)
    assert answer.pop("id").startswith("msg_")
    usage = answer.pop("usage")
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "echo",
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
    }
    assert usage == {
        "input_tokens": usage["input_tokens"],
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": len("hello") + 1,
    }


def test_text_and_calls_are_blocks_in_their_order(api: Api) -> None:
    assert without_ids(both(api, f"Let me see.\n{CALL}\n{TIME_CALL}", tools=TOOLS)) == [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "name": "get_weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "name": "get_time", "input": {}},
    ]


def test_without_parallel_use_there_is_one_call(api: Api) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    [call] = both(api, f"{CALL}\n{TIME_CALL}", tools=TOOLS, tool_choice=choice)
    assert call["name"] == "get_weather"


def test_a_tool_can_be_required(api: Api) -> None:
    answer = message(api, "no call", tools=TOOLS, tool_choice={"type": "tool", "name": "get_time"})
    [call] = answer["content"]
    assert (call["type"], call["name"], answer["stop_reason"]) == ("tool_use", "get_time", "tool_use")


def test_without_a_choice_of_tools_a_call_is_text(api: Api) -> None:
    assert both(api, CALL, tools=TOOLS, tool_choice={"type": "none"}) == [{"type": "text", "text": CALL}]


def test_a_call_that_is_cut_short_has_what_came_of_its_input(api: Api) -> None:
    said = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": [1, 2'
    answer = message(api, said, tools=TOOLS, max_tokens=len(said))
    [call] = answer["content"]
    assert call["input"]["city"] == "Oslo"
    assert answer["stop_reason"] == "max_tokens"


def test_an_answer_of_nothing_has_no_blocks(api: Api) -> None:
    assert both(api, "") == []


def test_a_schema_holds(api: Api) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    wanted = {"format": {"type": "json_schema", "schema": schema}}
    [block] = both(api, '{"a": 5}', output_config=wanted)
    assert json.loads(block["text"]) == {"a": 5}


def test_a_final_message_of_the_assistant_is_continued(api: Api) -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hell"}]
    count = succeeded(api.http.post("/v1/messages/count_tokens", json={"model": "echo", "messages": messages}))
    answer = message(api, messages=messages)
    assert count["input_tokens"] == answer["usage"]["input_tokens"]
    chat = api.chat(messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert answer["content"] == [{"type": "text", "text": chat["choices"][0]["message"]["content"]}]


# --- thinking


@pytest.fixture
def thinker(make_api: Callable[..., Api]) -> Api:
    return make_api(reasoning_parser="deepseek_r1")


@pytest.mark.parametrize("thinking", [None, {"type": "adaptive"}, {"type": "enabled", "budget_tokens": 1024}])
def test_thinking_is_the_first_block(thinker: Api, thinking: dict[str, Any] | None) -> None:
    assert both(thinker, THOUGHT, thinking=thinking) == [
        {"type": "thinking", "thinking": "hm, well", "signature": "tuneserve"},
        {"type": "text", "text": "Hello."},
    ]
    details = message(thinker, THOUGHT)["usage"]["output_tokens_details"]
    assert details["thinking_tokens"] > 0


def test_thinking_that_is_omitted_comes_back_in_its_signature(thinker: Api, make_api: Callable[..., Api]) -> None:
    said = both(thinker, THOUGHT, thinking={"type": "adaptive", "display": "omitted"})
    assert said[0]["thinking"] == "" and "hm, well" not in json.dumps(said)
    template = "{% for m in messages %}{{ m.reasoning_content or m.content }}{% endfor %}"
    user = {"role": "user", "content": ""}
    [block] = message(make_api(chat_template=template), messages=[{"role": "assistant", "content": said}, user])[
        "content"
    ]
    assert block["text"] == "hm, well"


def test_thinking_that_is_disabled_is_not_shown(thinker: Api) -> None:
    assert both(thinker, THOUGHT, thinking={"type": "disabled"}) == [{"type": "text", "text": "Hello."}]


def test_templates_are_told_whether_to_think(make_api: Callable[..., Api]) -> None:
    api = make_api(chat_template="{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}.")
    assert message(api)["content"][0]["text"] == "."
    assert message(api, thinking={"type": "disabled"})["content"][0]["text"] == "False."
    assert message(api, thinking={"type": "adaptive"})["content"][0]["text"] == "True."


def test_an_effort_is_told_to_templates_that_know_one(make_api: Callable[..., Api]) -> None:
    api = make_api(chat_template="{{ reasoning_effort }}.")
    reply = api.http.post("/v1/messages", json=body(output_config={"effort": "high"}))
    assert succeeded(reply)["content"][0]["text"] == "high." and "x-ignored-fields" not in reply.headers


# --- ends


def test_a_stop_sequence_is_told_and_not_shown(api: Api) -> None:
    assert both(api, "one two three", stop_sequences=["none", " two"]) == [{"type": "text", "text": "one"}]
    answer = message(api, "one two three", stop_sequences=["none", " two"])
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", " two")


def test_a_stop_string_of_the_server_ends_a_turn(make_api: Callable[..., Api]) -> None:
    answer = message(make_api(stop_words=[" two"]), "one two three")
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)


def test_the_end_at_most_tokens_and_at_the_end_of_the_context_are_two(make_api: Callable[..., Api]) -> None:
    api = make_api(engine=EchoEngine(max_model_len=64))
    assert message(api, "hello there", max_tokens=5)["stop_reason"] == "max_tokens"
    assert message(api, "hello there", max_tokens=32_000)["stop_reason"] == "end_turn"
    long = message(api, "hello there, how do you do?", max_tokens=32_000)
    assert long["stop_reason"] == "model_context_window_exceeded"
    assert long["usage"]["input_tokens"] + long["usage"]["output_tokens"] == 64
    refused = api.http.post("/v1/messages", json=body("long " * 100))
    assert refused.json()["error"]["details"] == {"error_code": "context_length_exceeded", "param": "messages"}


def test_no_tokens_are_an_answer_of_nothing(api: Api) -> None:
    assert both(api, "hello", max_tokens=0) == []
    answer = message(api, max_tokens=0)
    assert (answer["stop_reason"], answer["usage"]["output_tokens"]) == ("max_tokens", 0)


# --- streams


def test_a_silent_stream_pings(make_api: Callable[..., Api]) -> None:
    api = make_api(engine=EchoEngine(faults=EchoFaults(token_delay=0.1)), sse_keep_alive_interval=0.02)
    kinds = [event["type"] for event in events(api, "ab")]
    assert kinds[0] == "ping" and "message_start" in kinds and kinds[-1] == "message_stop"


def test_a_refusal_comes_before_the_stream(api: Api) -> None:
    reply = api.http.post("/v1/messages", json=body(stream=True, model="nope"))
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error")


def test_an_engine_that_dies_under_a_stream_is_an_error_event(make_api: Callable[..., Api]) -> None:
    api = make_api(engine=EchoEngine(faults=EchoFaults(die_after=2)))
    last = events(api)[-1]
    assert last["type"] == "error" and last["error"]["type"] in ("api_error", "overloaded_error")
    assert last["request_id"].startswith("req-")


# --- counts


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": "be brief"},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": {"type": "none"}},
        {"thinking": {"type": "disabled"}},
        {"output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "é"}] * 3}]},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_a_count_is_what_the_message_uses(make_api: Callable[..., Api], fields: dict[str, Any]) -> None:
    api = make_api(chat_template="{{ tools }}{{ enable_thinking }}{{ reasoning_effort }}{{ messages }}")
    asked = {key: value for key, value in body(**fields).items() if key != "max_tokens"}
    count = succeeded(api.http.post("/v1/messages/count_tokens", json=asked))
    assert count == {"input_tokens": message(api, **fields)["usage"]["input_tokens"]}


def test_a_count_tells_of_what_has_no_effect(api: Api) -> None:
    asked = {"model": "echo", "messages": [{"role": "user", "content": "a"}], "speed": "fast"}
    reply = api.http.post("/v1/messages/count_tokens?beta=true", json=asked, headers={"anthropic-beta": "b"})
    assert reply.headers["x-ignored-fields"].split(",") == ["speed", "anthropic-beta"]


def test_what_does_not_fit_the_model_is_counted_too(make_api: Callable[..., Api]) -> None:
    api = make_api(engine=EchoEngine(max_model_len=64))
    asked = {"model": "echo", "messages": [{"role": "user", "content": "a" * 1000}]}
    assert succeeded(api.http.post("/v1/messages/count_tokens", json=asked))["input_tokens"] > 1000
    asked["messages"] = [{"role": "user", "content": "a" * 600_000}]
    refused = api.http.post("/v1/messages/count_tokens", json=asked)
    assert refused.json()["error"]["details"]["error_code"] == "context_length_exceeded"


# --- fields without effect


def test_unknown_fields_are_told_and_those_of_blocks_are_not(api: Api) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a", "citations": None, "nonsense": 1}], "x": 1}]
    headers = {"anthropic-beta": "some-beta", "anthropic-version": "2023-06-01"}
    reply = api.http.post("/v1/messages", json=body(messages=messages, nonsense=1), headers=headers)
    assert succeeded(reply)["content"] == [{"type": "text", "text": "a"}]
    assert reply.headers["x-ignored-fields"].split(",") == ["nonsense", "anthropic-beta"]


def test_a_server_that_refuses_unknown_fields_knows_anthropics(make_api: Callable[..., Api]) -> None:
    api = make_api(unknown_fields="refuse")
    message(api, metadata={"user_id": "u"}, cache_control={"type": "ephemeral"}, thinking={"type": "adaptive"})
    reply = api.http.post("/v1/messages", json=body(nonsense=1))
    assert (reply.status_code, reply.json()["error"]["details"]["param"]) == (400, "nonsense")
