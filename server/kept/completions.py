"""Kept chat completions: what was asked and what was answered, to look at again or to make training data of."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from sqlalchemy import ColumnElement, RowMapping, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engines.errors import NotFound, StorageFull, StoreUnavailable
from server.deps import part
from server.http.body import MIB
from server.kept.encoding import decode, encode
from server.kept.shelf import Limits, Shelf
from server.kept.table import COMPLETIONS
from server.kept.writer import Write, Writer
from server.store.access import Access
from server.store.database import Database
from server.store.pages import Order, read_page
from server.store.reserve import DiskReserve

NOT_SHOWN = ("messages", "continue_final_message", "echo")
"""What of a request OpenAI's object has no place for."""
GROUP_ROWS = 100
GROUP_BYTES = 16 * MIB
"""What is read of them at a time, be it a page or a part of all; one that is longer is read alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCompletion:
    owner: str | None
    """Name of the key that asked for it; None: nobody's."""
    metadata: dict[str, str]
    asked: dict[str, Any]
    """`messages`, and what else of the request the completion is shown with."""
    answer: dict[str, Any]
    """The answer as its client got it, or would have got it as a whole."""

    @property
    def id(self) -> str:
        return str(self.answer["id"])

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Those of the request, as OpenAI shows them: with ids, and their content as one text."""
        return [_to_stored(f"{self.id}-{place}", message) for place, message in enumerate(self.asked["messages"])]

    def to_wire(self) -> dict[str, Any]:
        """As OpenAI has it: the answer, and how it was asked for."""
        shown = {name: value for name, value in self.asked.items() if name not in NOT_SHOWN}
        return {**shown, **self.answer, "metadata": self.metadata}

    def to_row(self) -> dict[str, Any]:
        asked, answer = encode(self.asked), encode(self.answer)
        return {
            "id": self.id,
            "owner": self.owner,
            "bytes": len(asked) + len(answer),
            "created_at": int(self.answer["created"]),
            "model": self.answer["model"],
            "metadata": self.metadata,
            "asked": asked,
            "answer": answer,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which completions are meant; what is not given is any."""

    model: str | None = None
    metadata: Mapping[str, str] | None = None
    """Completions that have all these pairs, whatever else they have."""
    created_after: int | None = None
    created_before: int | None = None
    """In seconds since 1970, both of them included."""


class KeptCompletions:
    """Each owner has room for some; the oldest make room for new ones."""

    def __init__(
        self, database: Database, writer: Writer, limits: Limits, reserve: DiskReserve, *, asked_for: bool
    ) -> None:
        """`asked_for`: whether the server was told to keep what requests want to have kept."""
        self.shelf = Shelf(COMPLETIONS, limits, reserve, writer)
        self._database = database
        self._writer = writer
        self._asked_for = asked_for

    @property
    def keeps(self) -> bool:
        """Whether this server keeps any, and has room for one more."""
        if not (self._asked_for and self._database.is_open):
            return False
        try:
            self.shelf.check_room()
        except (StorageFull, StoreUnavailable):
            return False
        return True

    def keep_later(self, id: str, make: Callable[[], KeptCompletion]) -> None:
        """Keep what `make` gives, in a thread, without waiting for that. A look at what is kept finds it from now on.

        Where it cannot be kept, the log tells.
        """

        def prepare() -> Write:
            row = make().to_row()

            async def write(connection: AsyncConnection) -> None:
                await self.shelf.put(connection, row)

            return write

        self._writer.add(f"The chat completion {id}", prepare)

    # ---- finding

    async def get(self, id: str, access: Access) -> KeptCompletion:
        """Raises NotFound."""
        await self._writer.settle()
        async with self._database.reading() as connection:
            row = await self._find(connection, id, access)
        return await _to_completion(row)

    async def page(
        self, wanted: Filter, access: Access, *, after: str | None, limit: int, order: Order = "asc"
    ) -> tuple[list[KeptCompletion], bool]:
        """Some of them, fewer than `limit` where they are long, and whether more follow. Raises NotFound where there is
        none `after`."""
        await self._writer.settle()
        columns, within = COMPLETIONS.c, self.shelf.visible(access)
        async with self._database.reading() as connection:
            query = select(columns.number, columns.bytes).where(within, *_meant(wanted, connection))
            found, more = await read_page(
                connection, COMPLETIONS, query, within=within, after=after, limit=limit, order=order
            )
        groups = _groups([(row["number"], row["bytes"]) for row in found])
        page = [completion async for completion in self._fetch(groups[0])] if groups else []
        return page if order == "asc" else page[::-1], more or len(groups) > 1

    async def find(self, wanted: Filter, access: Access, *, limit: int | None) -> Sequence[tuple[int, int]]:
        """What `read` takes: the newest `limit` of them, the oldest of these first."""
        await self._writer.settle()
        columns = COMPLETIONS.c
        async with self._database.reading() as connection:
            query = select(columns.number, columns.bytes).where(self.shelf.visible(access), *_meant(wanted, connection))
            found = (await connection.execute(query.order_by(columns.number.desc()).limit(limit))).all()
        return [(row.number, row.bytes) for row in reversed(found)]

    async def read(self, found: Sequence[tuple[int, int]]) -> AsyncIterator[KeptCompletion]:
        """Those that are still kept, never much of them in memory."""
        for group in _groups(found):
            async for completion in self._fetch(group):
                yield completion

    async def _fetch(self, numbers: Sequence[int]) -> AsyncIterator[KeptCompletion]:
        number = COMPLETIONS.c.number
        query = select(COMPLETIONS).where(number.in_(numbers)).order_by(number)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        for row in rows:
            yield await _to_completion(row)

    # ---- changing

    async def update(self, id: str, access: Access, metadata: dict[str, str]) -> KeptCompletion:
        """Have this metadata in place of what there was. Raises NotFound."""
        await self._writer.settle()
        rows = update(COMPLETIONS).where(COMPLETIONS.c.id == id, self.shelf.visible(access))
        async with self._database.writing() as connection:
            await connection.execute(rows.values({"metadata": metadata}))
            row = await self._find(connection, id, access)
        return await _to_completion(row)

    async def delete(self, id: str, access: Access) -> None:
        """Raises NotFound."""
        await self._writer.settle()
        async with self._database.freeing() as connection:
            if not await self.shelf.delete(connection, id, access):
                raise _no_such(id)

    async def _find(self, connection: AsyncConnection, id: str, access: Access) -> RowMapping:
        query = select(COMPLETIONS).where(COMPLETIONS.c.id == id, self.shelf.visible(access))
        row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise _no_such(id)
        return row


KeptCompletionsDep = Annotated[KeptCompletions, Depends(part(KeptCompletions))]


def _groups(found: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Numbers, each with its row's bytes, as they are read together."""
    groups: list[list[int]] = []
    room = 0
    for number, size in found:
        if size > room or len(groups[-1]) == GROUP_ROWS:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(number)
        room -= size
    return groups


def _meant(wanted: Filter, connection: AsyncConnection) -> list[ColumnElement[bool]]:
    columns = COMPLETIONS.c
    conditions: list[ColumnElement[bool]] = []
    if wanted.model is not None:
        conditions.append(columns.model == wanted.model)
    if wanted.created_after is not None:
        conditions.append(columns.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(columns.created_at <= wanted.created_before)
    pairs = func.json_each if connection.dialect.name == "sqlite" else func.json_each_text
    for key, value in (wanted.metadata or {}).items():
        pair = pairs(columns.metadata).table_valued("key", "value")
        conditions.append(exists(select(1).select_from(pair).where(pair.c.key == key, pair.c.value == value)))
    return conditions


async def _to_completion(row: RowMapping) -> KeptCompletion:
    asked, answer = await decode(row["asked"], row["answer"])
    return KeptCompletion(owner=row["owner"], metadata=row["metadata"], asked=asked, answer=answer)


def _to_stored(id: str, message: Mapping[str, Any]) -> dict[str, Any]:
    content, refusal = message.get("content"), message.get("refusal")
    parts = content if isinstance(content, list) else None
    text = content if parts is None else "".join(part.get("text") or "" for part in parts)
    return {"refusal": refusal, **message, "id": id, "content": text, "content_parts": parts}


def _no_such(id: str) -> NotFound:
    return NotFound(f"No such chat completion: {id[:100]}", param="completion_id")
