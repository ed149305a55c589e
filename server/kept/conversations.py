"""Conversations: items in the order in which they were said, kept until nobody has added to them for long."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from sqlalchemy import RowMapping, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engines.errors import InvalidRequest, NotFound, QuotaExceeded
from server.deps import part
from server.http.body import MIB
from server.kept.encoding import decode
from server.kept.items import Item, encoded
from server.kept.shelf import MAX_BYTES, Limits, Shelf
from server.kept.table import CONVERSATIONS, ITEMS
from server.kept.writer import Writer
from server.store.access import Access
from server.store.database import Database
from server.store.ids import new_id
from server.store.pages import Order, read_page
from server.store.reserve import DiskReserve


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    id: str
    owner: str | None
    created_at: int
    metadata: dict[str, str]

    def to_wire(self) -> dict[str, Any]:
        """As OpenAI has it."""
        return {
            "id": self.id,
            "object": "conversation",
            "created_at": self.created_at,
            "metadata": self.metadata,
        }


class Conversations:
    """Unlike answers, they make no room for each other: an owner who has as many as may be gets no more."""

    def __init__(self, database: Database, writer: Writer, limits: Limits, reserve: DiskReserve) -> None:
        self._database = database
        self._writer = writer
        self._reserve = reserve
        self.shelf = Shelf(CONVERSATIONS, limits, reserve, writer)

    # ---- conversations

    async def create(self, access: Access, metadata: dict[str, str], items: Sequence[Item]) -> Conversation:
        """Raises QuotaExceeded, StorageFull."""
        self._reserve.check()
        conversation = Conversation(
            id=new_id("conv_"), owner=access.owner, created_at=int(time.time()), metadata=metadata
        )
        async with self._database.writing() as connection:
            texts = encoded(items)
            await self._check_room(connection, access.owner, 1, texts)
            row = {
                "id": conversation.id,
                "owner": access.owner,
                "bytes": 0,
                "created_at": conversation.created_at,
                "expires_at": self.shelf.expiry(),
                "metadata": metadata,
            }
            await connection.execute(insert(CONVERSATIONS).values(row))
            await self.append(connection, conversation.id, texts)
        return conversation

    async def get(self, id: str, access: Access) -> Conversation:
        """Raises NotFound."""
        async with self._database.reading() as connection:
            return _to_conversation(await self._find(connection, id, access))

    async def update(self, id: str, access: Access, metadata: dict[str, str]) -> Conversation:
        """Raises NotFound."""
        rows = update(CONVERSATIONS).where(CONVERSATIONS.c.id == id, self.shelf.visible(access))
        async with self._database.writing() as connection:
            await connection.execute(rows.values(metadata=metadata, expires_at=self.shelf.expiry()))
            return _to_conversation(await self._find(connection, id, access))

    async def delete(self, id: str, access: Access) -> None:
        """With all its items. Raises NotFound."""
        await self._writer.settle()
        async with self._database.freeing() as connection:
            if not await self.shelf.delete(connection, id, access):
                raise _no_such(id)

    # ---- their items

    async def add(self, id: str, access: Access, items: Sequence[Item]) -> None:
        """Raises NotFound, QuotaExceeded, StorageFull, and InvalidRequest where an item's id is there already."""
        self._reserve.check()
        await self._writer.settle()
        async with self._database.writing() as connection:
            row = await self._find(connection, id, access)
            texts = encoded(items)
            await self._check_room(connection, row["owner"], 0, texts, row["bytes"])
            if there := await _ids(connection, id, texts):
                raise InvalidRequest(f"The conversation has an item {min(there)!r} already.", param="items")
            await self.append(connection, id, texts)

    async def page(
        self, id: str, access: Access, *, after: str | None, limit: int, order: Order = "desc"
    ) -> tuple[list[Item], bool]:
        """Some of its items, and whether more follow. Raises NotFound."""
        await self._writer.settle()
        within = ITEMS.c.conversation_id == id
        query = select(ITEMS.c.item, ITEMS.c.number).where(within)
        async with self._database.reading() as connection:
            await self._find(connection, id, access)
            rows, more = await read_page(connection, ITEMS, query, within=within, after=after, limit=limit, order=order)
        return await decode(*(row["item"] for row in rows)), more

    async def items(self, id: str, access: Access) -> list[Item]:
        """All of them, the oldest first: what a response that belongs to it goes on from.

        Raises NotFound, and QuotaExceeded where there is no room for what the response would append.
        """
        await self._writer.settle()
        query = select(ITEMS.c.item).where(ITEMS.c.conversation_id == id).order_by(ITEMS.c.number)
        async with self._database.reading() as connection:
            row = await self._find(connection, id, access)
            await self._check_room(connection, row["owner"], 0, {}, row["bytes"])
            texts = (await connection.execute(query)).scalars().all()
        return await decode(*texts)

    async def item(self, id: str, item_id: str, access: Access) -> Item:
        """Raises NotFound."""
        await self._writer.settle()
        query = select(ITEMS.c.item).where(ITEMS.c.conversation_id == id, ITEMS.c.id == item_id)
        async with self._database.reading() as connection:
            await self._find(connection, id, access)
            text = (await connection.execute(query)).scalar_one_or_none()
        if text is None:
            raise _no_such_item(item_id)
        found: list[Item] = await decode(text)
        return found[0]

    async def delete_item(self, id: str, item_id: str, access: Access) -> Conversation:
        """The conversation without it. Raises NotFound."""
        await self._writer.settle()
        which = delete(ITEMS).where(ITEMS.c.conversation_id == id, ITEMS.c.id == item_id).returning(ITEMS.c.bytes)
        async with self._database.freeing() as connection:
            row = await self._find(connection, id, access)
            size = (await connection.execute(which)).scalar_one_or_none()
            if size is None:
                raise _no_such_item(item_id)
            await self._grow(connection, id, -size)
        return _to_conversation(row)

    async def append(self, connection: AsyncConnection, id: str, texts: Mapping[str, str]) -> None:
        """Add items, `encoded`, as part of another change, but for those that are there already. Where the conversation
        is gone, nothing happens."""
        conversation = select(CONVERSATIONS.c.id).where(CONVERSATIONS.c.id == id).with_for_update()
        if (await connection.execute(conversation)).scalar_one_or_none() is None:
            return
        there = await _ids(connection, id, texts)
        new = {item_id: text for item_id, text in texts.items() if item_id not in there}
        rows = [
            {"id": item_id, "conversation_id": id, "bytes": len(text), "item": text} for item_id, text in new.items()
        ]
        if rows:
            await connection.execute(insert(ITEMS), rows)
        await self._grow(connection, id, sum(map(len, new.values())))

    async def _grow(self, connection: AsyncConnection, id: str, more: int) -> None:
        columns = CONVERSATIONS.c
        values = {"bytes": columns.bytes + more, "expires_at": self.shelf.expiry()}
        await connection.execute(update(CONVERSATIONS).where(columns.id == id).values(values))

    async def _check_room(
        self, connection: AsyncConnection, owner: str | None, more: int, texts: Mapping[str, str], taken: int = 0
    ) -> None:
        """`more` conversations, and more items of one that has `taken` bytes."""
        limits, size = self.shelf.limits, sum(map(len, texts.values()))
        if taken + size > MAX_BYTES:
            raise QuotaExceeded(f"The conversation would have more than {MAX_BYTES // MIB} MiB: go on in another.")
        count, total = await self.shelf.taken(connection, owner)
        if count + more > limits.number:
            raise QuotaExceeded(f"There are {count} conversations of yours, as many as may be (max_kept): delete some.")
        if total + size > limits.bytes:
            raise QuotaExceeded("Your conversations have as many bytes as may be (max_kept_size): delete some.")

    async def _find(self, connection: AsyncConnection, id: str, access: Access) -> RowMapping:
        query = select(CONVERSATIONS).where(CONVERSATIONS.c.id == id, self.shelf.visible(access))
        row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise _no_such(id)
        return row


ConversationsDep = Annotated[Conversations, Depends(part(Conversations))]


async def _ids(connection: AsyncConnection, id: str, ids: Iterable[str]) -> set[str]:
    """Those of `ids` that items of the conversation have."""
    found = await connection.execute(select(ITEMS.c.id).where(ITEMS.c.conversation_id == id, ITEMS.c.id.in_([*ids])))
    return set(found.scalars())


def _to_conversation(row: RowMapping) -> Conversation:
    return Conversation(id=row["id"], owner=row["owner"], created_at=row["created_at"], metadata=row["metadata"])


def _no_such(id: str) -> NotFound:
    return NotFound(f"Conversation with id '{id[:100]}' not found.", param="conversation_id")


def _no_such_item(id: str) -> NotFound:
    return NotFound(f"Item with id '{id[:100]}' not found.", param="item_id")
