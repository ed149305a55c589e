"""Lists in pages, as OpenAI's API cuts them: from the row after the one that `after` names."""

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, RowMapping, Select, Table, select
from sqlalchemy.ext.asyncio import AsyncConnection

from engines.errors import NotFound

Order = Literal["asc", "desc"]
"""Of time: the oldest first, or the latest."""


async def read_page(
    connection: AsyncConnection,
    table: Table,
    query: Select[Any],
    *,
    within: ColumnElement[bool],
    after: str | None,
    limit: int,
    order: Order = "desc",
) -> tuple[Sequence[RowMapping], bool]:
    """At most `limit` rows of `query` in the order of `table.number`, and whether more follow.

    `within`: the rows of `table` that may be known of. Raises NotFound where `after` is the id of none of these.
    """
    number = table.c.number
    if after is not None:
        found = await connection.execute(select(number).where(table.c.id == after, within))
        last = found.scalar_one_or_none()
        if last is None:
            raise NotFound(f"There is no {after[:100]!r} to go on after.", param="after")
        query = query.where(number < last if order == "desc" else number > last)
    query = query.order_by(number.desc() if order == "desc" else number.asc()).limit(limit + 1)
    rows = (await connection.execute(query)).mappings().all()
    return rows[:limit], len(rows) > limit
