"""Batches in the database: every change of status is from one that the row has, and says when."""

import time
from collections.abc import Collection
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import RowMapping, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engines.errors import Conflict, NotFound
from server.batches.batch import UNFINISHED, Batch, Status
from server.batches.table import BATCHES
from server.store.access import SERVER, Access
from server.store.database import Database
from server.store.pages import read_page

NAMES = frozenset(field.name for field in fields(Batch))


class BatchStore:
    def __init__(self, database: Database) -> None:
        self.database = database

    async def add(self, batch: Batch) -> None:
        async with self.database.writing() as connection:
            await connection.execute(insert(BATCHES).values(**asdict(batch)))

    async def get(self, id: str, access: Access) -> Batch:
        """Raises NotFound."""
        async with self.database.reading() as connection:
            return await _find(connection, id, access)

    async def page(self, access: Access, *, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """The newest first, and whether more follow. Raises NotFound where there is no batch `after`."""
        async with self.database.reading() as connection:
            within = access.rows(BATCHES)
            query = select(BATCHES).where(within)
            rows, more = await read_page(connection, BATCHES, query, within=within, after=after, limit=limit)
        return [_to_batch(row) for row in rows], more

    async def unfinished(self) -> list[Batch]:
        """The oldest first."""
        query = select(BATCHES).where(BATCHES.c.status.in_(UNFINISHED)).order_by(BATCHES.c.number)
        async with self.database.reading() as connection:
            return [_to_batch(row) for row in (await connection.execute(query)).mappings()]

    async def count_unfinished(self, owner: str | None) -> int:
        """How many of this owner's batches run or wait."""
        query = select(func.count()).where(BATCHES.c.status.in_(UNFINISHED), BATCHES.c.owner == owner)
        async with self.database.reading() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def update(self, id: str, **values: Any) -> None:
        """Change what is no status."""
        async with self.database.writing() as connection:
            await connection.execute(update(BATCHES).where(BATCHES.c.id == id).values(**values))

    async def move(self, id: str, origin: Collection[str], to: Status, **values: Any) -> Batch:
        """Have a batch in one of the statuses `origin` go on to `to`; one in another stays. The batch as it is then."""
        async with self.database.writing() as connection:
            await self.move_in(connection, id, origin, to, **values)
            return await _find(connection, id, SERVER)

    async def move_in(
        self, connection: AsyncConnection, id: str, origin: Collection[str], to: Status, **values: Any
    ) -> bool:
        """The same as a part of another change: whether it went on."""
        row = update(BATCHES).where(BATCHES.c.id == id, BATCHES.c.status.in_(origin))
        done = await connection.execute(row.values({"status": to, f"{to}_at": int(time.time()), **values}))
        return done.rowcount > 0

    async def cancel(self, id: str, access: Access) -> Batch:
        """Raises NotFound, and Conflict where nothing is left to cancel."""
        batch = await self.get(id, access)
        if batch.status not in ("cancelling", "cancelled"):
            batch = await self.move(id, ("validating", "in_progress"), "cancelling")
        if batch.status not in ("cancelling", "cancelled"):
            raise Conflict(f"A batch with status {batch.status!r} cannot be cancelled.", param="batch_id")
        return batch


async def _find(connection: AsyncConnection, id: str, access: Access) -> Batch:
    query = select(BATCHES).where(BATCHES.c.id == id, access.rows(BATCHES))
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"No such batch: {id[:100]}", param="batch_id")
    return _to_batch(row)


def _to_batch(row: RowMapping) -> Batch:
    return Batch(**{name: value for name, value in row.items() if name in NAMES})
