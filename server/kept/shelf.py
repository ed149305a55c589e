"""A table of kept things: each has an owner, a size and an end."""

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, delete, func, insert, or_, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from engines.errors import QuotaExceeded
from server.http.body import MIB
from server.kept.writer import Writer
from server.store.access import Access
from server.store.reserve import DiskReserve

MAX_BYTES = 32 * MIB
"""Bytes of the largest answer that is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What each owner may have of one kind, and for how long."""

    number: int
    bytes: int
    seconds: int


class Shelf:
    """What is put on it when it is full takes the place of its owner's oldest."""

    def __init__(
        self,
        table: Table,
        limits: Limits,
        reserve: DiskReserve,
        writer: Writer,
        *,
        stays: ColumnElement[bool] | None = None,
    ) -> None:
        """`writer` writes what is put on it behind the answers. `stays`: rows that make no place for others."""
        self.table = table
        self.limits = limits
        self._reserve = reserve
        self._writer = writer
        self._may_go = true() if stays is None else ~stays
        self._last_to_go = (*(() if stays is None else (stays.desc(),)), table.c.number.desc())

    def visible(self, access: Access) -> ColumnElement[bool]:
        """Whether `access` finds a row: it is one of its own, and has not expired."""
        return and_(self.table.c.expires_at > int(time.time()), access.rows(self.table))

    def expiry(self) -> int:
        """When something ends that is kept now, in seconds since 1970."""
        return int(time.time()) + self.limits.seconds

    def check_room(self) -> None:
        """Raises StorageFull, StoreUnavailable where it is known beforehand that one more would not be kept."""
        self._reserve.check()
        self._writer.check_room()

    async def put(self, connection: AsyncConnection, row: dict[str, Any]) -> None:
        """Add a row, which brings all columns but its expiry; in place of itself, where a try before this one was
        committed and nobody heard of it. Raises StorageFull, QuotaExceeded."""
        size = row["bytes"]
        if size > min(MAX_BYTES, self.limits.bytes) or not self.limits.number:
            raise QuotaExceeded(f"An answer of {size / MIB:.3g} MiB, with its request, is too large to be kept.")
        self._reserve.check(size)
        await connection.execute(delete(self.table).where(self.table.c.id == row["id"]))
        await self._make_room(connection, row["owner"], size)
        await connection.execute(insert(self.table).values(**row, expires_at=self.expiry()))

    async def _make_room(self, connection: AsyncConnection, owner: str | None, size: int) -> None:
        count, total = await self.taken(connection, owner)
        if count < self.limits.number and total + size <= self.limits.bytes:
            return
        columns, order = self.table.c, self._last_to_go
        places = select(
            columns.number,
            func.row_number().over(order_by=order).label("place"),
            func.sum(columns.bytes).over(order_by=order).label("total"),
        )
        rows = places.where(columns.owner == owner).subquery()
        too_old = or_(rows.c.place >= self.limits.number, rows.c.total > self.limits.bytes - size)
        await connection.execute(
            delete(self.table).where(columns.number.in_(select(rows.c.number).where(too_old)), self._may_go)
        )

    async def taken(self, connection: AsyncConnection, owner: str | None) -> tuple[int, int]:
        """How many rows an owner has, and how many bytes."""
        columns = self.table.c
        query = select(func.count(), func.coalesce(func.sum(columns.bytes), 0)).where(columns.owner == owner)
        count, total = (await connection.execute(query)).one()
        return int(count), int(total)

    async def delete(self, connection: AsyncConnection, id: str, access: Access) -> bool:
        """Whether there was such a row."""
        done = await connection.execute(delete(self.table).where(self.table.c.id == id, self.visible(access)))
        return done.rowcount > 0

    async def delete_expired(self, connection: AsyncConnection) -> None:
        await connection.execute(delete(self.table).where(self.table.c.expires_at <= int(time.time())))
