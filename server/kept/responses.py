"""Kept responses: the answer as its client gets it, with the items that it answers."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from fastapi import Depends
from sqlalchemy import RowMapping, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engines.errors import InvalidRequest, NotFound
from server.deps import part
from server.http.body import MIB
from server.kept.conversations import Conversations
from server.kept.encoding import decode, encode
from server.kept.items import Item, encoded, page_of_items
from server.kept.shelf import MAX_BYTES, Limits, Shelf
from server.kept.table import RESPONSES
from server.kept.writer import Write, Writer
from server.store.access import Access
from server.store.database import Database
from server.store.pages import Order
from server.store.reserve import DiskReserve

UNFINISHED = ("queued", "in_progress")
MAX_TURNS = 1000
"""Responses that may go on from each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRequest:
    """What a response in the background was asked with, until it has ended: enough to begin it again."""

    body: dict[str, Any]
    """Without the input, which is kept as items."""
    by_admin: bool
    """Whether the key that asked had every right, or none was needed."""
    begun: int = 0
    """Servers that have begun it."""
    handed_over: int = 0
    """Those of them that ended in order."""

    @property
    def attempts(self) -> int:
        """Servers that have begun it and died, or run it now."""
        return self.begun - self.handed_over

    def begun_again(self) -> "KeptRequest":
        return replace(self, begun=self.begun + 1)

    def given_back(self) -> "KeptRequest":
        """That its server ends in order is no fault of the request."""
        return replace(self, handed_over=self.handed_over + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptResponse:
    owner: str | None
    """Name of the key that asked for it; None: nobody's."""
    answer: dict[str, Any]
    """The response object: what it says of its id, status, creation, output and previous response is what is kept."""
    input: Sequence[Item]
    """The items of this request alone, each with an id. Those before are of `previous_response_id`."""
    request: KeptRequest | None = None
    """Of one in the background that has not ended."""

    @property
    def id(self) -> str:
        return str(self.answer["id"])

    @property
    def status(self) -> str:
        return str(self.answer["status"])

    @property
    def items(self) -> list[Item]:
        """What was read and said."""
        return [*self.input, *self.answer["output"]]

    def to_row(self) -> dict[str, Any]:
        answer, asked = encode(self.answer), encode(self.input)
        request = None if self.request is None else encode(asdict(self.request))
        return {
            "id": self.id,
            "owner": self.owner,
            "bytes": len(answer) + len(asked) + len(request or ""),
            "created_at": int(self.answer["created_at"]),
            "status": self.status,
            "previous_response_id": self.answer.get("previous_response_id"),
            "answer": answer,
            "input": asked,
            "request": request,
        }


class KeptResponses:
    """Each owner has room for some; the oldest make room for new ones, but for those that are not finished."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        conversations: Conversations,
        limits: Limits,
        reserve: DiskReserve,
    ) -> None:
        self._database = database
        self._conversations = conversations
        self._writer = writer
        self.shelf = Shelf(RESPONSES, limits, reserve, writer, stays=RESPONSES.c.status.in_(UNFINISHED))

    @property
    def keeps(self) -> bool:
        """Whether this server keeps anything."""
        return self._database.is_open

    # ---- keeping

    def keep_later(self, response: KeptResponse, conversation: str | None = None) -> None:
        """Keep it without waiting for that, and append what it read and said to the conversation of its owner.

        Both happen, or none. A look at what is kept finds it from now on. Where it cannot be kept, or the conversation
        is gone, the log tells.
        """
        self._writer.add(f"The response {response.id}", lambda: self._write(response, conversation))

    async def keep(self, response: KeptResponse) -> None:
        """Keep it: one in the background, before its client hears of it.

        Raises Conflict, StorageFull, StoreUnavailable, QuotaExceeded.
        """
        row = await asyncio.to_thread(response.to_row)
        async with self._database.writing() as connection:
            await self.shelf.put(connection, row)

    async def move(
        self, response: KeptResponse, origin: Collection[str] = UNFINISHED, conversation: str | None = None
    ) -> bool:
        """Have one that is kept with a status of `origin` become `response`; one with another stays as it is.

        Whether it has. Where it has, what it read and said is appended to the conversation.
        """
        row, texts = await asyncio.to_thread(lambda: (response.to_row(), encoded(response.items)))
        values = {name: row[name] for name in ("status", "answer", "input", "request", "bytes")}
        async with self._database.writing() as connection:
            rows = update(RESPONSES).where(RESPONSES.c.id == response.id, RESPONSES.c.status.in_(origin))
            moved = (await connection.execute(rows.values(values))).rowcount > 0
            if moved and conversation is not None:
                await self._conversations.append(connection, conversation, texts)
        return moved

    def _write(self, response: KeptResponse, conversation: str | None) -> Write:
        row, texts = response.to_row(), encoded(response.items)

        async def write(connection: AsyncConnection) -> None:
            await self.shelf.put(connection, row)
            if conversation is not None:
                await self._conversations.append(connection, conversation, texts)

        return write

    # ---- finding

    async def get(self, id: str, access: Access) -> KeptResponse:
        """Raises NotFound."""
        await self._writer.settle()
        query = select(RESPONSES).where(RESPONSES.c.id == id, self.shelf.visible(access))
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise _no_such(id)
        return await _to_response(row)

    async def context(self, id: str, access: Access) -> list[Item]:
        """What a request that goes on from response `id` follows: the items that it and all before it read and said,
        the oldest first.

        Raises NotFound where one of them is not kept any more, and InvalidRequest where they are too many or too long.
        """
        await self._writer.settle()
        columns = RESPONSES.c
        async with self._database.reading() as connection:
            numbers = await self._chain(connection, id, access)
            query = select(columns.input, columns.answer).where(columns.number.in_(numbers)).order_by(columns.number)
            rows = (await connection.execute(query)).all()
        texts = await decode(*(text for row in rows for text in (row.input, row.answer)))
        turns = zip(texts[::2], texts[1::2], strict=True)
        return [item for asked, answer in turns for item in (*asked, *answer["output"])]

    async def _chain(self, connection: AsyncConnection, id: str, access: Access) -> list[int]:
        """Numbers of a response and of all before it: those come earlier."""
        columns, visible = RESPONSES.c, self.shelf.visible(access)
        link = (columns.number, columns.bytes, columns.previous_response_id)
        chain = select(*link, literal(1).label("turn")).where(columns.id == id, visible).cte("chain", recursive=True)
        before = select(*link, chain.c.turn + 1).where(
            columns.id == chain.c.previous_response_id, visible, chain.c.turn <= MAX_TURNS
        )
        chain = chain.union_all(before)
        rows = (await connection.execute(select(chain).order_by(chain.c.turn.desc()))).all()
        if not rows:
            raise _no_such(id, "previous_response_id")
        if len(rows) > MAX_TURNS or sum(row.bytes for row in rows) > MAX_BYTES:
            message = f"It follows more than {MAX_TURNS} responses, or {MAX_BYTES // MIB} MiB of them: begin anew."
            raise InvalidRequest(message, param="previous_response_id")
        if (lost := rows[0].previous_response_id) is not None:
            raise _no_such(lost, "previous_response_id")
        return [row.number for row in rows]

    async def input_items(
        self, id: str, access: Access, *, after: str | None, limit: int, order: Order = "desc"
    ) -> tuple[list[Item], bool]:
        """A page of the items of one request, and whether more follow. Raises NotFound."""
        response = await self.get(id, access)
        return page_of_items(response.input, after=after, limit=limit, order=order)

    async def unfinished(self) -> list[KeptResponse]:
        """Those of all owners that run in the background or wait, the oldest first: at the start of a server, what the
        one before has left."""
        left = RESPONSES.c.status.in_(UNFINISHED), RESPONSES.c.expires_at > int(time.time())
        query = select(RESPONSES).where(*left).order_by(RESPONSES.c.number)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [await _to_response(row) for row in rows]

    async def completed(
        self, access: Access, *, created_after: int | None, created_before: int | None
    ) -> AsyncIterator[KeptResponse]:
        """Those that have ended well, the newest first, never many of them in memory. Times are in seconds since 1970,
        both included."""
        await self._writer.settle()
        columns = RESPONSES.c
        query = select(columns.number).where(self.shelf.visible(access), columns.status == "completed")
        if created_after is not None:
            query = query.where(columns.created_at >= created_after)
        if created_before is not None:
            query = query.where(columns.created_at <= created_before)
        async with self._database.reading() as connection:
            numbers = (await connection.execute(query.order_by(columns.number.desc()))).scalars().all()
        for number in numbers:
            async with self._database.reading() as connection:
                found = await connection.execute(select(RESPONSES).where(columns.number == number))
                row = found.mappings().one_or_none()
            if row is not None:
                yield await _to_response(row)

    # ---- deleting

    async def delete(self, id: str, access: Access) -> None:
        """Raises NotFound."""
        await self._writer.settle()
        async with self._database.freeing() as connection:
            if not await self.shelf.delete(connection, id, access):
                raise _no_such(id)


KeptResponsesDep = Annotated[KeptResponses, Depends(part(KeptResponses))]


def _no_such(id: str, param: str = "response_id") -> NotFound:
    return NotFound(f"Response with id '{id[:100]}' not found.", param=param)


async def _to_response(row: RowMapping) -> KeptResponse:
    answer, asked, request = await decode(row["answer"], row["input"], row["request"] or "null")
    return KeptResponse(
        owner=row["owner"], answer=answer, input=asked, request=None if request is None else KeptRequest(**request)
    )
