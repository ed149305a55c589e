"""Responses in events: `Api.response_events` checks each event's name, number and description."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from engines.echo import EchoEngine
from engines.errors import EngineFailure
from engines.types import GenerationRequest, TokenOutput
from tests.server.api import Api
from tests.server.responses.said import CALL, THOUGHT, WEATHER, text_of, types_of

MESSAGE = [
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
]
REASONING = [
    "output_item.added",
    "content_part.added",
    "reasoning_text.delta",
    "reasoning_text.done",
    "content_part.done",
    "output_item.done",
]
FUNCTION_CALL = [
    "output_item.added",
    "function_call_arguments.delta",
    "function_call_arguments.done",
    "output_item.done",
]


class FailingEngine(EchoEngine):
    """Fails after two tokens."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        steps = super().generate(request)
        for _ in range(2):
            yield await anext(steps)
        raise EngineFailure("A secret of the engine.")


def test_the_events_of_a_message_come_in_order(api: Api) -> None:
    events = api.response_events("hello")
    assert types_of(events) == ["created", "in_progress", *MESSAGE, "completed"]
    assert [event["delta"] for event in events if event["type"] == "response.output_text.delta"] == list("hello")


def test_a_response_begins_without_output_and_ends_with_all_of_it(api: Api) -> None:
    first, *_, last = (event["response"] for event in api.response_events("hello") if "response" in event)
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    whole = api.respond("hello")
    assert (last["status"], text_of(last), last["usage"]) == ("completed", "hello", whole["usage"])
    assert last.keys() == whole.keys()
    assert {name for name in first if first[name] != last[name]} == {"status", "output", "usage", "completed_at"}


def test_events_name_the_items_that_the_response_has(make_api: Callable[..., Api]) -> None:
    events = make_api(reasoning_parser="deepseek_r1").response_events(
        THOUGHT + CALL + CALL, tools=[WEATHER], reasoning={"summary": "detailed"}
    )
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == output
    for event in events:
        if "item_id" in event:
            assert event["item_id"] == output[event["output_index"]]["id"]
        if event["type"] == "response.output_item.added":
            assert event["item"]["status"] == "in_progress"
            assert event["item"]["id"] == output[event["output_index"]]["id"]


def test_a_call_is_told_as_its_arguments_come(api: Api) -> None:
    events = api.response_events(CALL, tools=[WEATHER])
    assert types_of(events) == ["created", "in_progress", *FUNCTION_CALL, "completed"]
    pieces = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(pieces) == '{"city": "Oslo"}' and len(pieces) > 1


def test_reasoning_comes_before_the_message(make_api: Callable[..., Api]) -> None:
    events = make_api(reasoning_parser="deepseek_r1").response_events(THOUGHT)
    assert types_of(events) == ["created", "in_progress", *REASONING, *MESSAGE, "completed"]


def test_a_summary_is_told_beside_the_reasoning(make_api: Callable[..., Api]) -> None:
    events = make_api(reasoning_parser="deepseek_r1").response_events(THOUGHT, reasoning={"summary": "auto"})
    kinds = {event["type"].removeprefix("response.reasoning_summary_") for event in events}
    assert kinds >= {"part.added", "text.delta", "text.done", "part.done"}
    for kind in ("text", "summary_text"):
        deltas = [event["delta"] for event in events if event["type"] == f"response.reasoning_{kind}.delta"]
        assert "".join(deltas) == "hm, well"


@pytest.mark.parametrize("stop", [None, "l\n</think>\n\nHe!"], ids=["piecewise", "held_back"])
def test_logprobs_come_with_the_deltas_of_the_text(make_api: Callable[..., Api], stop: str | None) -> None:
    events = make_api(reasoning_parser="deepseek_r1").response_events(THOUGHT, top_logprobs=1, stop=stop)
    entries = [entry for event in events if event["type"].endswith("text.delta") for entry in event.get("logprobs", [])]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == "Hello."
    (done,) = (event for event in events if event["type"] == "response.output_text.done")
    assert done["logprobs"] == entries


def test_a_stream_that_is_cut_short_ends_incomplete(api: Api) -> None:
    *_, last = api.response_events("hello", max_output_tokens=2)
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_a_call_that_is_cut_short_is_incomplete(api: Api) -> None:
    *_, last = api.response_events(CALL, tools=[WEATHER], max_output_tokens=50)
    (item,) = last["response"]["output"]
    assert (item["type"], item["status"]) == ("function_call", "incomplete")
    assert '{"city": "Oslo"}'.startswith(item["arguments"])


def test_a_call_that_is_whole_is_completed_where_the_answer_is_cut_short_behind_it(api: Api) -> None:
    cut = len(CALL) + len("<tool_call>")
    *_, last = api.response_events(CALL + CALL, tools=[WEATHER], max_output_tokens=cut)
    (item,) = last["response"]["output"]
    assert (last["response"]["status"], item["status"]) == ("incomplete", "completed")
    assert item["arguments"] == '{"city": "Oslo"}'


def test_an_error_on_the_way_is_told_and_the_response_has_failed(make_api: Callable[..., Api]) -> None:
    api = make_api(engine=FailingEngine(), raise_server_exceptions=False)
    *rest, error, failed = api.response_events("hello")
    assert types_of(rest)[:2] == ["created", "in_progress"]
    assert (error["type"], error["code"]) == ("error", "internal_error")
    assert "secret" not in error["message"]
    response = failed["response"]
    assert (failed["type"], response["status"]) == ("response.failed", "failed")
    assert response["error"] == {"code": "server_error", "message": error["message"]}
    assert text_of(response) == "he" and response["output"][0]["status"] == "incomplete"


def test_an_error_before_the_first_output_is_an_answer_of_its_own(api: Api) -> None:
    refusal = api.refused_response(stream=True, model="nobody")
    assert (refusal.status, refusal.code) == (404, "model_not_found")


@pytest.mark.parametrize("options", [{"include_obfuscation": False}, None])
def test_streams_are_not_obfuscated(api: Api, options: Any) -> None:
    assert api.response_events("hello", stream_options=options)[-1]["type"] == "response.completed"
