"""Evals, runs and output items in the database. Every change of a run's status is from one that the row has."""

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, RowMapping, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engines.errors import NotFound
from server.evals.records import UNFINISHED, Counts, Eval, ItemStatus, OutputItem, Run, Status
from server.evals.schema import Config
from server.evals.table import EVALS, ITEMS, RUNS
from server.kept.encoding import decode, encode
from server.store.access import SERVER, Access
from server.store.database import Database
from server.store.pages import Order, read_page
from training.params.graders import Grader

CONFIG: TypeAdapter[Any] = TypeAdapter(Config)
CRITERIA: TypeAdapter[Any] = TypeAdapter(list[Grader])
OrderBy = Literal["created_at", "updated_at"]


class EvalStore:
    def __init__(self, database: Database) -> None:
        self.database = database

    # ---- evals

    async def add_eval(self, new: Eval) -> None:
        row = {
            "id": new.id,
            "owner": new.owner,
            "name": new.name,
            "metadata": new.metadata,
            "config": encode(new.config.model_dump(mode="json", exclude_unset=True)),
            "criteria": encode([each.model_dump(mode="json", exclude_unset=True) for each in new.criteria]),
            "created_at": new.created_at,
            "updated_at": new.updated_at,
        }
        async with self.database.writing() as connection:
            await connection.execute(insert(EVALS).values(**row))

    async def count_evals(self, owner: str | None) -> int:
        async with self.database.reading() as connection:
            found = await connection.execute(select(func.count()).where(EVALS.c.owner == owner))
            return int(found.scalar_one())

    async def get_eval(self, id: str, access: Access) -> Eval:
        """Raises NotFound."""
        async with self.database.reading() as connection:
            return await _to_eval(await _find_eval(connection, id, access))

    async def page_of_evals(
        self, access: Access, *, after: str | None, limit: int, order: Order, order_by: OrderBy
    ) -> tuple[list[Eval], bool]:
        """Raises NotFound where there is none `after`."""
        within = access.rows(EVALS)
        by = EVALS.c.updated_at if order_by == "updated_at" else None
        async with self.database.reading() as connection:
            query = select(EVALS).where(within)
            rows, more = await read_page(
                connection, EVALS, query, within=within, after=after, limit=limit, order=order, by=by
            )
        return [await _to_eval(row) for row in rows], more

    async def change_eval(self, id: str, access: Access, **values: Any) -> Eval:
        """Raises NotFound."""
        async with self.database.writing() as connection:
            await _find_eval(connection, id, access)
            changed = update(EVALS).where(EVALS.c.id == id)
            await connection.execute(changed.values({**values, "updated_at": int(time.time())}))
            return await _to_eval(await _find_eval(connection, id, access))

    async def delete_eval(self, id: str, access: Access) -> list[str]:
        """Its runs, which go with it. Raises NotFound."""
        async with self.database.freeing() as connection:
            await _find_eval(connection, id, access)
            runs = (await connection.execute(select(RUNS.c.id).where(RUNS.c.eval_id == id))).scalars().all()
            await connection.execute(delete(EVALS).where(EVALS.c.id == id))
        return list(runs)

    # ---- runs

    async def add_run(self, run: Run) -> None:
        """Raises NotFound where its eval is gone."""
        row = {**asdict(run), "data_source": encode(run.data_source), "counts": encode(asdict(run.counts)), "bytes": 0}
        async with self.database.writing() as connection:
            await _find_eval(connection, run.eval_id, SERVER)
            await connection.execute(insert(RUNS).values(**row))

    async def count_runs(self, owner: str | None) -> tuple[int, int, int]:
        """Runs of this owner that go on or wait; all of them; the bytes of their output items."""
        mine = RUNS.c.owner == owner
        unfinished = func.count().filter(RUNS.c.status.in_(UNFINISHED))
        query = select(unfinished, func.count(), func.coalesce(func.sum(RUNS.c.bytes), 0)).where(mine)
        async with self.database.reading() as connection:
            waiting, all, size = (await connection.execute(query)).one()
        return int(waiting), int(all), int(size)

    async def get_run(self, id: str, access: Access, eval_id: str | None = None) -> Run:
        """Raises NotFound: also where it is of another eval."""
        async with self.database.reading() as connection:
            return await _to_run(await _find_run(connection, id, access, eval_id))

    async def page_of_runs(
        self, eval_id: str, access: Access, *, status: Status | None, after: str | None, limit: int, order: Order
    ) -> tuple[list[Run], bool]:
        """Raises NotFound."""
        async with self.database.reading() as connection:
            await _find_eval(connection, eval_id, access)
            within = RUNS.c.eval_id == eval_id
            query = select(RUNS).where(within)
            query = query if status is None else query.where(RUNS.c.status == status)
            rows, more = await read_page(connection, RUNS, query, within=within, after=after, limit=limit, order=order)
        return [await _to_run(row) for row in rows], more

    async def unfinished(self) -> list[tuple[str, str | None]]:
        """Ids and owners of runs that are not over, the oldest first."""
        query = select(RUNS.c.id, RUNS.c.owner).where(RUNS.c.status.in_(UNFINISHED)).order_by(RUNS.c.number)
        async with self.database.reading() as connection:
            return [(row.id, row.owner) for row in await connection.execute(query)]

    async def move(self, id: str, origin: Collection[str], to: Status, access: Access = SERVER, **values: Any) -> Run:
        """Have a run in one of the statuses `origin` go on to `to`; one in another stays. The run as it is then.

        Raises NotFound.
        """
        async with self.database.writing() as connection:
            await _find_run(connection, id, access)
            moved = update(RUNS).where(RUNS.c.id == id, RUNS.c.status.in_(origin))
            await connection.execute(moved.values({"status": to, **values}))
            return await _to_run(await _find_run(connection, id, access))

    async def delete_run(self, id: str, access: Access, eval_id: str) -> None:
        """Raises NotFound."""
        async with self.database.freeing() as connection:
            await _find_run(connection, id, access, eval_id)
            await connection.execute(delete(RUNS).where(RUNS.c.id == id))

    # ---- output items

    async def add_items(self, run_id: str, items: Sequence[OutputItem], counts: Counts) -> bool:
        """What came of some rows, and the counts with them. Whether the run is still in progress: else nothing is
        added."""
        texts = [encode(_kept_of(item)) for item in items]
        rows = [
            {"id": item.id, "run_id": run_id, "place": item.place, "status": item.status, "item": text}
            for item, text in zip(items, texts, strict=True)
        ]
        changed = update(RUNS).where(RUNS.c.id == run_id, RUNS.c.status == "in_progress")
        values = {"counts": encode(asdict(counts)), "bytes": RUNS.c.bytes + sum(map(len, texts))}
        async with self.database.writing() as connection:
            if not (await connection.execute(changed.values(values))).rowcount:
                return False
            if rows:
                await connection.execute(insert(ITEMS), rows)
        return True

    async def places(self, run_id: str) -> set[int]:
        """The rows of a run that are done."""
        async with self.database.reading() as connection:
            found = await connection.execute(select(ITEMS.c.place).where(ITEMS.c.run_id == run_id))
            return set(found.scalars())

    async def get_item(self, id: str, run: Run) -> OutputItem:
        """Raises NotFound."""
        query = select(ITEMS).where(ITEMS.c.id == id, ITEMS.c.run_id == run.id)
        async with self.database.reading() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise NotFound(f"No such output item: {id[:100]}", param="output_item_id")
        return await _to_item(row)

    async def page_of_items(
        self, run: Run, *, status: ItemStatus | None, after: str | None, limit: int, order: Order
    ) -> tuple[list[OutputItem], bool]:
        """Raises NotFound where there is none `after`."""
        within = ITEMS.c.run_id == run.id
        query = select(ITEMS).where(within)
        query = query if status is None else query.where(ITEMS.c.status == status)
        async with self.database.reading() as connection:
            rows, more = await read_page(connection, ITEMS, query, within=within, after=after, limit=limit, order=order)
        return [await _to_item(row) for row in rows], more


async def _find_eval(connection: AsyncConnection, id: str, access: Access) -> RowMapping:
    return await _find(connection, EVALS.c.id == id, access.rows(EVALS), NotFound(f"No such eval: {id[:100]}"), EVALS)


async def _find_run(connection: AsyncConnection, id: str, access: Access, eval_id: str | None = None) -> RowMapping:
    of_eval = RUNS.c.id == id if eval_id is None else (RUNS.c.id == id) & (RUNS.c.eval_id == eval_id)
    missing = NotFound(f"No such run: {id[:100]}", param="run_id")
    return await _find(connection, of_eval, access.rows(RUNS), missing, RUNS)


async def _find(
    connection: AsyncConnection, which: ColumnElement[bool], within: ColumnElement[bool], missing: NotFound, table: Any
) -> RowMapping:
    row = (await connection.execute(select(table).where(which, within))).mappings().one_or_none()
    if row is None:
        raise missing
    return row


async def _to_eval(row: RowMapping) -> Eval:
    config, criteria = await decode(row["config"], row["criteria"])
    same = {name: row[name] for name in ("id", "owner", "name", "metadata", "created_at", "updated_at")}
    return Eval(**same, config=CONFIG.validate_python(config), criteria=CRITERIA.validate_python(criteria))


async def _to_run(row: RowMapping) -> Run:
    data_source, counts = await decode(row["data_source"], row["counts"])
    names = ("id", "eval_id", "owner", "by_admin", "status", "name", "metadata", "created_at", "error")
    same = {name: row[name] for name in names}
    return Run(**same, data_source=data_source, counts=Counts.read(counts))


def _kept_of(item: OutputItem) -> dict[str, Any]:
    return {name: getattr(item, name) for name in ("created_at", "datasource_item", "results", "sample")}


async def _to_item(row: RowMapping) -> OutputItem:
    [kept] = await decode(row["item"])
    return OutputItem(**{name: row[name] for name in ("id", "run_id", "place", "status")}, **kept)
