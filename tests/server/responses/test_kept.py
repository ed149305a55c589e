"""Responses that are kept: looked at, gone on from, referred to, and deleted; each its owner's alone."""

from collections.abc import Callable
from typing import Any

import pytest

from engines.errors import StorageFull
from server.kept.conversations import Conversation, Conversations
from server.store.access import Access
from server.store.reserve import DiskReserve
from tests.server.api import Api, succeeded
from tests.server.client import ReadyClient
from tests.server.keys import bearer
from tests.server.openai_schema import check
from tests.server.responses.said import CALL, THOUGHT, WEATHER, message, output
from tests.server.responses.test_input import ReadingEngine, chat_of
from tests.server.responses.test_stream import FailingEngine

ANN, BOB = "ann-0123456789abcdef", "bob-0123456789abcdef"
ANYBODY = Access(owner=None, everything=True)


@pytest.fixture
def engine() -> ReadingEngine:
    return ReadingEngine()


@pytest.fixture
def kept(make_api: Callable[..., Api], engine: ReadingEngine) -> Api:
    return make_api(engine=engine)


def get(api: Api, path: str, **query: Any) -> dict[str, Any]:
    return succeeded(api.http.get(f"/v1/responses/{path}", params=query))


def items_of(api: Api, id: str, **query: Any) -> list[dict[str, Any]]:
    page = get(api, f"{id}/input_items", **{"order": "asc", **query})
    check("ResponseItemList", page)
    data: list[dict[str, Any]] = page["data"]
    return data


def make_conversation(api: Api) -> Conversation:
    assert isinstance(api.http, ReadyClient)
    return api.http.portal.call(api.http.parts[Conversations].create, ANYBODY, {}, [])


def items_of_conversation(api: Api, id: str) -> list[dict[str, Any]]:
    assert isinstance(api.http, ReadyClient)
    return api.http.portal.call(api.http.parts[Conversations].items, id, ANYBODY)


def test_a_response_is_found_as_it_was_answered(kept: Api) -> None:
    response = kept.respond("hello", metadata={"a": "b"})
    assert response["store"] is True
    assert get(kept, response["id"]) == response


def test_a_streamed_response_is_found_as_soon_as_it_has_ended(kept: Api) -> None:
    last = kept.response_events("hello", max_output_tokens=2)[-1]["response"]
    assert get(kept, last["id"]) == last


def test_a_response_is_not_kept_where_the_client_says_so(kept: Api) -> None:
    response = kept.respond("hello", store=False)
    assert response["store"] is False
    assert kept.http.get(f"/v1/responses/{response['id']}").status_code == 404


def test_a_server_that_keeps_nothing_says_so(make_api: Callable[..., Api]) -> None:
    api = make_api(without_state=True)
    assert api.respond("hello")["store"] is False
    refusal = api.refused_response(store=True)
    assert (refusal.status, refusal.param) == (400, "store")
    assert api.refused_response(previous_response_id="resp_1").status == 409


def test_where_the_disk_is_full_a_response_that_has_to_be_kept_is_refused_before_it_is_made(
    kept: Api, engine: ReadingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFull("There is no room left.")

    asked: list[dict[str, Any]] = [{"store": True}, {"background": True}, {"conversation": make_conversation(kept).id}]
    monkeypatch.setattr(DiskReserve, "check", full)
    for each in asked:
        refusal = kept.refused_response(**each)
        assert (refusal.status, refusal.code) == (507, "insufficient_storage")
    assert not engine.prompts
    assert kept.respond("hello")["store"] is False


def test_a_deleted_response_is_gone(kept: Api) -> None:
    id = kept.respond("hello")["id"]
    assert succeeded(kept.http.delete(f"/v1/responses/{id}")) == {"id": id, "object": "response", "deleted": True}
    assert kept.http.get(f"/v1/responses/{id}").status_code == 404
    assert kept.http.delete(f"/v1/responses/{id}").status_code == 404
    refusal = kept.refused_response(previous_response_id=id)
    assert (refusal.status, refusal.param) == (404, "previous_response_id")


def test_the_items_of_an_input_are_listed_with_ids(kept: Api) -> None:
    items = [
        message("developer", "Be brief."),
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        message("assistant", [{"type": "output_text", "text": "b"}, {"type": "refusal", "refusal": "no"}]),
        output("call_1"),
        output("call_2", [{"type": "input_text", "text": "a"}], id="fco_2"),
        {"id": "msg_1", **message("user", "c")},
    ]
    id = kept.respond(items)["id"]
    listed = items_of(kept, id)
    assert [item["type"] for item in listed] == [item.get("type", "message") for item in items]
    assert listed[0]["content"] == [{"type": "input_text", "text": "Be brief."}]
    assert listed[2]["content"][0] == {"type": "output_text", "text": "b", "annotations": [], "logprobs": []}
    assert (listed[1]["id"], listed[4]["id"], listed[5]["id"]) == ("rs_1", "fco_2", "msg_1")
    assert len({item["id"] for item in listed}) == len(items)
    assert items_of(kept, id, order="desc") == listed[::-1]
    assert items_of(kept, id, after=listed[1]["id"], limit=2) == listed[2:4]


def test_each_owner_has_its_own(make_api: Callable[..., Api]) -> None:
    api = make_api(api_key=(f"ann=infer:{ANN}", f"bob=infer:{BOB}"))
    asked = {"model": "echo", "input": "hello"}
    id = succeeded(api.http.post("/v1/responses", json=asked, headers=bearer(ANN)))["id"]
    assert api.http.get(f"/v1/responses/{id}", headers=bearer(ANN)).status_code == 200
    for path in (id, f"{id}/input_items"):
        assert api.http.get(f"/v1/responses/{path}", headers=bearer(BOB)).status_code == 404
    assert api.http.delete(f"/v1/responses/{id}", headers=bearer(BOB)).status_code == 404
    follow = api.http.post("/v1/responses", json=asked | {"previous_response_id": id}, headers=bearer(BOB))
    assert follow.status_code == 404
    refer = [{"type": "item_reference", "id": f"msg_{id.removeprefix('resp_')}_0"}, message("user", "b")]
    assert api.http.post("/v1/responses", json=asked | {"input": refer}, headers=bearer(ANN)).status_code == 200
    assert api.http.post("/v1/responses", json=asked | {"input": refer}, headers=bearer(BOB)).status_code == 404


# --- going on


def test_a_response_goes_on_from_the_one_before(kept: Api, engine: ReadingEngine) -> None:
    first = kept.respond("one", instructions="Forgotten.")
    second = kept.respond("two", previous_response_id=first["id"])
    third = kept.respond("three", previous_response_id=second["id"], instructions="Be brief.")
    assert third["previous_response_id"] == second["id"]
    prompt = engine.prompts[-1]
    said = [message(role, text) for text in ("one", "two") for role in ("user", "assistant")]
    assert prompt == chat_of(kept, engine, [message("system", "Be brief."), *said, message("user", "three")])
    assert [item["content"][0]["text"] for item in items_of(kept, third["id"])] == ["three"]


def test_a_tools_output_follows_the_call_that_is_kept(kept: Api, engine: ReadingEngine) -> None:
    first = kept.respond(CALL, tools=[WEATHER])
    (call,) = first["output"]
    kept.respond([output(call["call_id"])], previous_response_id=first["id"], tools=[WEATHER])
    assert engine.prompts[-1].count('"city": "Oslo"') == 2 and "7 degrees" in engine.prompts[-1]


def test_reasoning_is_gone_on_from(make_api: Callable[..., Api], engine: ReadingEngine) -> None:
    api = make_api(engine=engine, reasoning_parser="deepseek_r1")
    first = api.respond(THOUGHT)
    api.respond("Go on.", previous_response_id=first["id"])
    followed = engine.prompts[-1]
    api.respond([message("user", THOUGHT), *first["output"], message("user", "Go on.")])
    assert followed == engine.prompts[-1]


def test_tokens_are_counted_with_what_came_before(kept: Api) -> None:
    first = kept.respond("one")
    asked: dict[str, Any] = {"input": "two", "previous_response_id": first["id"]}
    counted = kept.post("/v1/responses/input_tokens", **asked).json()["input_tokens"]
    assert counted == kept.respond(**asked)["usage"]["input_tokens"]


def test_references_stand_for_items_that_are_kept(kept: Api, engine: ReadingEngine) -> None:
    first = kept.respond([message("user", "one")])
    (said,), (asked,) = first["output"], items_of(kept, first["id"])
    refer = [{"type": "item_reference", "id": asked["id"]}, {"id": said["id"]}, message("user", "two")]
    second = kept.respond(refer)
    whole = [message("user", "one"), message("assistant", "one"), message("user", "two")]
    assert engine.prompts[-1] == chat_of(kept, engine, whole)
    assert [item["id"] for item in items_of(kept, second["id"])][:2] == [asked["id"], said["id"]]


def test_a_reference_to_what_came_before_says_nothing_twice(kept: Api, engine: ReadingEngine) -> None:
    first = kept.respond("one")
    kept.respond([{"id": first["output"][0]["id"]}, message("user", "two")], previous_response_id=first["id"])
    assert engine.prompts[-1].count("one") == 2


@pytest.mark.parametrize("id", ["msg_1", "msg_0123abcd_0", "nothing"])
def test_a_reference_to_nothing_is_not_found(kept: Api, id: str) -> None:
    refusal = kept.refused_response(input=[message("user", "a"), {"type": "item_reference", "id": id}])
    assert (refusal.status, refusal.param) == (404, "input[1].id")


# --- conversations


def test_a_conversation_goes_on_by_itself(kept: Api, engine: ReadingEngine) -> None:
    id = make_conversation(kept).id
    first = kept.respond("one", conversation=id)
    assert first["conversation"] == {"id": id}
    events = kept.response_events("two", conversation={"id": id})
    whole = [*(message(role, "one") for role in ("user", "assistant")), message("user", "two")]
    assert events[-1]["type"] == "response.completed"
    assert engine.prompts[-1] == chat_of(kept, engine, whole)
    kinds = [(item["type"], item["role"]) for item in items_of_conversation(kept, id)]
    assert kinds == [("message", "user"), ("message", "assistant")] * 2


def test_a_conversation_that_is_not_there_is_not_found(kept: Api) -> None:
    refusal = kept.refused_response(conversation="conv_1")
    assert (refusal.status, refusal.param) == (404, "conversation")


def test_one_of_the_two_is_gone_on_from(kept: Api) -> None:
    refusal = kept.refused_response(conversation="conv_1", previous_response_id="resp_1")
    assert (refusal.status, refusal.param) == (400, "previous_response_id")


def test_an_answer_that_failed_is_no_part_of_a_conversation(make_api: Callable[..., Api]) -> None:
    api = make_api(engine=FailingEngine(), raise_server_exceptions=False)
    id = make_conversation(api).id
    failed = api.response_events("hello", conversation=id)[-1]["response"]
    assert get(api, failed["id"])["status"] == "failed"
    assert items_of_conversation(api, id) == []
