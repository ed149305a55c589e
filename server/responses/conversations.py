"""/v1/conversations: items that responses follow and add to, and that clients may add, look at and delete."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from engines.errors import InvalidRequest
from server.http.body import Items, Metadata, RequestBody, json_body
from server.http.keys.deps import AccessDep
from server.http.paging import Limit
from server.kept.conversations import ConversationsDep
from server.kept.items import page_to_wire
from server.responses.items import Item, Reference
from server.responses.resources import to_resources
from server.responses.schema import Included
from server.responses.words import ENCRYPTED, LOGPROBS
from server.store.ids import new_id
from server.store.pages import Order

router = APIRouter(prefix="/v1/conversations")

MAX_ITEMS = 20
"""Items that one request may add, as OpenAI has it."""
SomeItems = Annotated[Items[Item], Field(max_length=MAX_ITEMS)]


class ConversationBody(RequestBody):
    metadata: Metadata | None = None
    items: SomeItems | None = None


class ConversationUpdate(RequestBody):
    metadata: Metadata | None
    """Takes the place of what there was."""


class ItemsBody(RequestBody):
    items: SomeItems


def _included(request: Request) -> frozenset[str]:
    """OpenAI's clients write `include[]`. Raises InvalidRequest."""
    asked = request.query_params
    include = frozenset((*asked.getlist("include"), *asked.getlist("include[]")))
    if unknown := include.difference(get_args(Included)):
        raise InvalidRequest(f"Nothing named {min(unknown)[:100]!r} can be included.", param="include")
    return include


IncludeDep = Annotated[frozenset[str], Depends(_included)]


@router.post("")
async def create_conversation(
    body: Annotated[ConversationBody, json_body(ConversationBody)], conversations: ConversationsDep, access: AccessDep
) -> dict[str, Any]:
    conversation = await conversations.create(access, body.metadata or {}, _new_items(body.items or []))
    return conversation.to_wire()


@router.get("/{conversation_id}")
async def get_conversation(conversation_id: str, conversations: ConversationsDep, access: AccessDep) -> dict[str, Any]:
    return (await conversations.get(conversation_id, access)).to_wire()


@router.post("/{conversation_id}")
async def update_conversation(
    conversation_id: str,
    body: Annotated[ConversationUpdate, json_body(ConversationUpdate)],
    conversations: ConversationsDep,
    access: AccessDep,
) -> dict[str, Any]:
    return (await conversations.update(conversation_id, access, body.metadata or {})).to_wire()


@router.delete("/{conversation_id}")
async def delete_conversation(
    conversation_id: str, conversations: ConversationsDep, access: AccessDep
) -> dict[str, Any]:
    await conversations.delete(conversation_id, access)
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


@router.post("/{conversation_id}/items")
async def create_items(
    conversation_id: str,
    body: Annotated[ItemsBody, json_body(ItemsBody)],
    conversations: ConversationsDep,
    access: AccessDep,
    include: IncludeDep,
) -> dict[str, Any]:
    items = _new_items(body.items)
    await conversations.add(conversation_id, access, items)
    return page_to_wire([_shown(item, include) for item in items], False)


@router.get("/{conversation_id}/items")
async def list_items(
    conversation_id: str,
    conversations: ConversationsDep,
    access: AccessDep,
    include: IncludeDep,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> dict[str, Any]:
    items, more = await conversations.page(conversation_id, access, after=after, limit=limit, order=order)
    return page_to_wire([_shown(item, include) for item in items], more)


@router.get("/{conversation_id}/items/{item_id}")
async def get_item(
    conversation_id: str, item_id: str, conversations: ConversationsDep, access: AccessDep, include: IncludeDep
) -> dict[str, Any]:
    return _shown(await conversations.item(conversation_id, item_id, access), include)


@router.delete("/{conversation_id}/items/{item_id}")
async def delete_item(
    conversation_id: str, item_id: str, conversations: ConversationsDep, access: AccessDep
) -> dict[str, Any]:
    """The conversation without it."""
    return (await conversations.delete_item(conversation_id, item_id, access)).to_wire()


def _new_items(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Raises InvalidRequest for references, and for two items with one id."""
    for position, item in enumerate(items):
        if isinstance(item, Reference):
            raise InvalidRequest("A conversation takes items themselves, no references.", param=f"items[{position}]")
    resources = to_resources(items, new_id(""))
    if len({each["id"] for each in resources}) < len(resources):
        raise InvalidRequest("Each item needs an id of its own, or none.", param="items")
    return resources


def _shown(item: Mapping[str, Any], include: frozenset[str]) -> dict[str, Any]:
    """An item without what is shown only where it is asked for."""
    shown = {name: value for name, value in item.items() if name != "encrypted_content" or ENCRYPTED in include}
    if item["type"] == "message" and LOGPROBS not in include:
        shown["content"] = [{**part, "logprobs": []} if "logprobs" in part else part for part in item["content"]]
    return shown
