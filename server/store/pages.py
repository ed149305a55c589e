"""Lists in pages, as OpenAI's API cuts them: from the row after the one that `after` names."""

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import Column, ColumnElement, RowMapping, Select, Table, select, tuple_
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
    by: "Column[Any] | None" = None,
) -> tuple[Sequence[RowMapping], bool]:
    """At most `limit` rows of `query` in the order of `table.number`, and whether more follow.

    `within`: the rows of `table` that may be known of; `by`: a column whose order comes before that of the numbers.
    Raises NotFound where `after` is the id of none of these.
    """
    columns = [table.c.number] if by is None else [by, table.c.number]
    if after is not None:
        found = (await connection.execute(select(*columns).where(table.c.id == after, within))).one_or_none()
        if found is None:
            raise NotFound(f"There is no {after[:100]!r} to go on after.", param="after")
        place, last = tuple_(*columns), tuple_(*found)
        query = query.where(place < last if order == "desc" else place > last)
    ordered = [column.desc() if order == "desc" else column.asc() for column in columns]
    query = query.order_by(*ordered).limit(limit + 1)
    rows = (await connection.execute(query)).mappings().all()
    return rows[:limit], len(rows) > limit
