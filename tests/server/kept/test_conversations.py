"""Conversations, with OpenAI's own client: made, added to by clients and by responses, looked at and deleted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.api import succeeded
from tests.server.client import ReadyClient, echo_client
from tests.server.openai_schema import check
from tests.server.process import Kept, ServerProcess
from tests.server.states import as_state
from tests.until import until

PATH = "/v1/conversations"


@pytest.fixture
def http() -> Iterator[ReadyClient]:
    with echo_client() as client:
        yield client


def user(content: str | list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": content, **fields}


def make(http: ReadyClient, *items: dict[str, Any], **fields: Any) -> str:
    id: str = succeeded(http.post(PATH, json={"items": list(items), **fields}))["id"]
    return id


def texts(http: ReadyClient, id: str) -> list[str]:
    items = succeeded(http.get(f"{PATH}/{id}/items", params={"order": "asc"}))["data"]
    return [item["content"][0]["text"] for item in items]


def test_openais_client_makes_changes_and_deletes_one(start_echo: Callable[..., ServerProcess], tmp_path: Path) -> None:
    server = start_echo(params={"state_dir": str(as_state(tmp_path))})
    until(server.is_ready)
    conversations = Kept(server, tmp_path).client.conversations
    made = conversations.create(metadata={"of": "support"}, items=[{"role": "user", "content": "one"}])
    assert conversations.retrieve(made.id) == made
    assert conversations.update(made.id, metadata={"of": "sales"}).metadata == {"of": "sales"}

    added = conversations.items.create(
        made.id,
        items=[
            {"role": "assistant", "content": "two"},
            {"type": "function_call_output", "call_id": "c", "output": "3"},
        ],
        include=["message.output_text.logprobs"],
    )
    found: list[Any] = list(conversations.items.list(made.id, limit=1, order="asc"))
    assert [item.id for item in found[1:]] == [item.id for item in added.data], "the client turns pages"
    assert [found[0].content[0].text, found[1].content[0].text, found[2].output] == ["one", "two", "3"]
    assert conversations.items.retrieve(found[1].id, conversation_id=made.id) == found[1]
    assert conversations.items.delete(found[0].id, conversation_id=made.id).id == made.id
    assert [item.id for item in conversations.items.list(made.id)] == [found[2].id, found[1].id]

    assert conversations.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        conversations.items.list(made.id)


def test_conversations_are_as_openai_describes_them(http: ReadyClient) -> None:
    conversation = succeeded(http.post(PATH, json={}))
    check("ConversationResource", conversation)
    assert conversation["metadata"] == {}
    path = f"{PATH}/{conversation['id']}"
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    parts = [{"type": "input_text", "text": "b"}]
    items = [user("a"), user(parts, role="developer"), user("c", role="assistant"), call]
    check("ConversationItemList", succeeded(http.post(f"{path}/items", json={"items": items})))
    page = succeeded(http.get(f"{path}/items", params={"limit": 3}))
    check("ConversationItemList", page)
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, page["data"][0]["id"], page["data"][2]["id"])
    check("ConversationItem", succeeded(http.get(f"{path}/items/{page['first_id']}")))
    check("ConversationResource", succeeded(http.delete(f"{path}/items/{page['first_id']}")))
    check("DeletedConversationResource", succeeded(http.delete(path)))


def test_a_response_reads_a_conversation_and_adds_to_it(http: ReadyClient) -> None:
    id = make(http, user("one"))
    body = {"model": "echo", "input": "two", "conversation": id}
    succeeded(http.post("/v1/responses", json=body))
    assert texts(http, id) == ["one", "two", "two"]


def test_what_is_shown_only_where_it_is_asked_for(http: ReadyClient) -> None:
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": "x"}
    items = f"{PATH}/{make(http, sealed)}/items"
    body = {"model": "echo", "input": "a", "include": ["message.output_text.logprobs"]}
    other = make(http)
    succeeded(http.post("/v1/responses", json={**body, "conversation": other}))
    [plain], [told] = (
        succeeded(http.get(items, params=query))["data"] for query in ({}, {"include[]": "reasoning.encrypted_content"})
    )
    assert ("encrypted_content" in plain, told["encrypted_content"]) == (False, "x")
    for query, count in (({}, 0), ({"include": "message.output_text.logprobs"}, 1)):
        [said, _] = succeeded(http.get(f"{PATH}/{other}/items", params=query))["data"]
        assert len(said["content"][0]["logprobs"]) == count
    assert http.get(items, params={"include": "everything"}).json()["error"]["param"] == "include"


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([user(str(number)) for number in range(21)], "items"),
        ([{"type": "item_reference", "id": "msg_1"}], "items[0]"),
        ([user("a", id="x"), user("b", id="x")], "items"),
        ([{"type": "image_generation_call", "id": "x"}], "items[0]"),
        ([user([{"type": "input_image", "image_url": "x"}])], "items[0].content[0]"),
    ],
)
def test_items_that_cannot_be_kept_are_refused(http: ReadyClient, items: list[dict[str, Any]], param: str) -> None:
    id = make(http)
    for path in (PATH, f"{PATH}/{id}/items"):
        reply = http.post(path, json={"items": items})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    assert texts(http, id) == []


def test_an_id_is_given_once(http: ReadyClient) -> None:
    id = make(http, user("a", id="msg_1"))
    reply = http.post(f"{PATH}/{id}/items", json={"items": [user("b"), user("c", id="msg_1")]})
    assert (reply.status_code, texts(http, id)) == (400, ["a"])
    assert texts(http, make(http, user("d", id="msg_1"))) == ["d"]


def test_one_more_than_may_be_is_refused() -> None:
    with echo_client(max_kept=2) as http:
        first, _ = make(http), make(http)
        reply = http.post(PATH, json={})
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "quota_exceeded")
        assert "(max_kept)" in reply.text
        http.delete(f"{PATH}/{first}")
        make(http)
    with echo_client(max_kept_size=1000 / 2**30) as http:
        id = make(http, user("a"))
        for path in (PATH, f"{PATH}/{id}/items"):
            reply = http.post(path, json={"items": [user("x" * 1000)]})
            assert (reply.status_code, "(max_kept_size)" in reply.text) == (429, True)
        [item] = succeeded(http.get(f"{PATH}/{id}/items"))["data"]
        http.delete(f"{PATH}/{id}/items/{item['id']}")
        make(http, user("x" * 600))


def test_a_server_that_keeps_nothing_has_none() -> None:
    with echo_client(without_state=True) as http:
        assert http.post(PATH, json={}).status_code == 409
