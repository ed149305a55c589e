"""What a response follows: the items before its input, and those that its input refers to."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engines.errors import InvalidRequest, NotFound
from server.kept.conversations import Conversations
from server.kept.responses import KeptResponses
from server.responses.ids import response_of
from server.responses.items import Item, Message, Reference
from server.responses.resources import from_resources
from server.responses.schema import PromptFields
from server.store.access import Access


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    before: Sequence[Item]
    """What was read and said before, the oldest first."""
    own: Sequence[Item]
    """The request's own input, with what it refers to in the place of each reference."""
    is_long: bool
    """Whether what is done with it should be done in a thread."""


class Contexts:
    def __init__(self, kept: KeptResponses, conversations: Conversations) -> None:
        self._kept = kept
        self._conversations = conversations

    async def find(self, body: PromptFields, access: Access) -> Context:
        """Raises NotFound for what is not kept, or is another's, and InvalidRequest."""
        kept = await self._before(body, access)
        before = await asyncio.to_thread(from_resources, kept) if kept else []
        own = _own(body, has_more=bool(before))
        known = {item.id for item in before}
        own = [item for item in own if not (isinstance(item, Reference) and item.id in known)]
        resolved = [each async for each in self._resolved(own, access)]
        return Context(before=before, own=resolved, is_long=body.is_long or bool(before))

    async def find_again(self, body: PromptFields, own: Sequence[dict[str, Any]], access: Access) -> Context:
        """The same for a request whose own input is kept as items. Raises NotFound, InvalidRequest."""
        kept = await self._before(body, access)
        before, items = await asyncio.to_thread(lambda: (from_resources(kept), from_resources(own)))
        return Context(before=before, own=items, is_long=True)

    async def _before(self, body: PromptFields, access: Access) -> list[dict[str, Any]]:
        conversation = body.conversation_id
        if conversation is None:
            previous = body.previous_response_id
            return [] if previous is None else await self._kept.context(previous, access)
        if body.previous_response_id is not None:
            message = "'conversation' and 'previous_response_id' exclude each other."
            raise InvalidRequest(message, param="previous_response_id")
        try:
            return await self._conversations.items(conversation, access)
        except NotFound as error:
            raise NotFound(error.message, param="conversation") from None

    async def _resolved(self, items: Iterable[Item], access: Access) -> AsyncIterator[Item]:
        for position, item in enumerate(items):
            if isinstance(item, Reference):
                yield await self._referred(item.id, access, f"input[{position}].id")
            else:
                yield item

    async def _referred(self, id: str, access: Access, param: str) -> Item:
        missing = NotFound(
            f"There is no item {id[:100]!r}: those of responses are kept unless 'store' is false.", param=param
        )
        if (named := response_of(id)) is None:
            raise missing
        try:
            response = await self._kept.get(named, access)
        except NotFound:
            raise missing from None
        found = [item for item in response.items if item["id"] == id]
        if not found:
            raise missing
        return from_resources(found)[0]


def _own(body: PromptFields, *, has_more: bool) -> Sequence[Item]:
    if body.input is None:
        if has_more:
            return []
        raise InvalidRequest("'input' must be given.", param="input", code="missing_required_parameter")
    return [Message(role="user", content=body.input)] if isinstance(body.input, str) else body.input
