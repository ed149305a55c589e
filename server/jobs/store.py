"""What is known of jobs: every change of one is a compare-and-set on its status and its attempt.

Whoever was left behind, such as a run whose job was cancelled, changes nothing any more.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from sqlalchemy import ColumnElement, RowMapping, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from engines.errors import Conflict, NotFound
from server.jobs.job import TERMINAL, Job, JobStatus
from server.jobs.table import ATTEMPTS, CHECKPOINTS, EVENTS, JOBS
from server.store.access import Access
from server.store.database import Database
from server.store.ids import new_id
from server.store.pages import Order, read_page
from training.discreet import without_folders
from training.folder import EVENT, Checkpoint, Event, Message

CURVE = ("step", "evaluation")
"""Types of the events that tell how the training goes."""
PIECE = 500
"""Events read at a time: the event loop goes on in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    number: int
    """Counts up over the events of all jobs: a client goes on after the last that it has seen."""
    id: str
    attempt: int
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCheckpoint:
    id: str
    attempt: int
    step: int
    path: PurePosixPath
    """Within the attempt's folder."""
    created_at: float
    announced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    job_id: str
    attempt: int
    started_at: float
    pid: int | None
    pid_started: float | None
    offset: int


def message(text: str, level: Literal["info", "warn", "error"] = "info") -> Message:
    """An event of the server's own."""
    return Message(time=time.time(), level=level, message=without_folders(text))


class JobStore:
    def __init__(self, database: Database) -> None:
        self.database = database

    # ---- jobs

    async def create(self, job: Job, access: Access, *events: Event, needs: Collection[str] = ()) -> Job:
        """`needs`: ids of jobs whose files it uses. Raises Conflict where one of them is gone, or not to be seen."""
        async with self.database.writing() as connection:
            query = select(JOBS.c.id).where(JOBS.c.id.in_(needs), access.rows(JOBS))
            found = await connection.execute(query.with_for_update())
            if gone := set(needs).difference(found.scalars()):
                raise Conflict(f"The job {min(gone)} was deleted, and this one needs what it had made.")
            await connection.execute(insert(JOBS).values(**asdict(job)))
            await _add_events(connection, job.id, 0, events)
        return job

    async def get(self, id: str, access: Access) -> Job:
        """Raises NotFound."""
        query = select(JOBS).where(JOBS.c.id == id, access.rows(JOBS))
        async with self.database.reading() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise _no_such(id)
        return _to_job(row)

    async def page(
        self,
        access: Access,
        *where: ColumnElement[bool],
        after: str | None = None,
        limit: int = 20,
        order: Order = "desc",
    ) -> tuple[list[Job], bool]:
        """One page, and whether more follow. `where` is in terms of `table.JOBS`."""
        within = access.rows(JOBS)
        query = select(JOBS).where(within, *where)
        async with self.database.reading() as connection:
            rows, more = await read_page(connection, JOBS, query, within=within, after=after, limit=limit, order=order)
        return [_to_job(row) for row in rows], more

    async def all(self, *where: ColumnElement[bool]) -> list[Job]:
        """Everybody's. Those of the highest priority first, and of these the one that waits longest."""
        order = (JOBS.c.priority.desc(), JOBS.c.queued_at.asc(), JOBS.c.number.asc())
        async with self.database.reading() as connection:
            rows = (await connection.execute(select(JOBS).where(*where).order_by(*order))).mappings().all()
        return [_to_job(row) for row in rows]

    async def change(
        self,
        id: str,
        *events: Event,
        attempt: int,
        before: Collection[JobStatus],
        also: Callable[[AsyncConnection], Awaitable[None]] | None = None,
        **values: Any,
    ) -> Job | None:
        """The job with new `values`, and with `events` told and `also` done in the same moment.

        None, and nothing is changed, where this is not its `attempt` any more or its status was none of `before`.
        """
        async with self.database.writing() as connection:
            changed = await _change(connection, id, values, *events, attempt=attempt, before=before)
            if changed is not None and also is not None:
                await also(connection)
        return changed

    async def begin_attempt(self, job: Job) -> Job | None:
        """A queued job runs from now on, as a new attempt. None where it is not queued any more."""
        now = time.time()
        values = {
            "status": JobStatus.RUNNING,
            "attempt": job.attempt + 1,
            "started_at": job.started_at or now,
            "not_before": None,
        }
        async with self.database.writing() as connection:
            begun = await _change(connection, job.id, values, attempt=job.attempt, before={JobStatus.QUEUED})
            if begun is not None:
                attempt = {"job_id": job.id, "attempt": begun.attempt, "started_at": now, "offset": 0}
                await connection.execute(insert(ATTEMPTS).values(**attempt))
        return begun

    async def delete(
        self, id: str, access: Access, *, before: Collection[JobStatus], needed_by: Callable[[Job], bool]
    ) -> bool:
        """Whether it is gone, with all that it reported: not where its status is none of `before`.

        Raises Conflict where it is `needed_by` a job that has not ended, which is named where `access` covers it.
        """
        async with self.database.freeing() as connection:
            await _in_turn(connection, id)
            others = await connection.execute(select(JOBS).where(JOBS.c.id != id, JOBS.c.status.not_in(TERMINAL)))
            if users := [job for job in map(_to_job, others.mappings()) if needed_by(job)]:
                raise _needed(users, access)
            which = (JOBS.c.id == id, access.rows(JOBS), JOBS.c.status.in_(before))
            gone = await connection.execute(delete(JOBS).where(*which))
        return gone.rowcount == 1

    async def ids(self) -> set[str]:
        async with self.database.reading() as connection:
            return set((await connection.execute(select(JOBS.c.id))).scalars())

    async def count_waiting(self, owner: str | None) -> int:
        """How many of this owner's jobs wait for their turn."""
        waiting = JOBS.c.status.in_((JobStatus.VALIDATING, JobStatus.QUEUED))
        async with self.database.reading() as connection:
            query = select(func.count()).where(waiting, JOBS.c.owner == owner)
            return int((await connection.execute(query)).scalar_one())

    async def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs there are of each type and status."""
        async with self.database.reading() as connection:
            query = select(JOBS.c.type, JOBS.c.status, func.count()).group_by(JOBS.c.type, JOBS.c.status)
            return {(type, status): count for type, status, count in await connection.execute(query)}

    # ---- attempts

    async def set_process(self, job: Job, pid: int, started: float) -> None:
        async with self.database.writing() as connection:
            await connection.execute(update(ATTEMPTS).where(*_of(job)).values(pid=pid, pid_started=started))

    async def attempts(self, job_id: str) -> list[Attempt]:
        async with self.database.reading() as connection:
            query = select(ATTEMPTS).where(ATTEMPTS.c.job_id == job_id).order_by(ATTEMPTS.c.attempt)
            return [Attempt(**row) for row in (await connection.execute(query)).mappings()]

    async def offset(self, job: Job) -> int:
        async with self.database.reading() as connection:
            offset: int = (await connection.execute(select(ATTEMPTS.c.offset).where(*_of(job)))).scalar_one()
        return offset

    async def take_in(self, job: Job, events: Sequence[Event], *, before: int, after: int) -> None:
        """Have what the attempt wrote from byte `before` to `after` in the tables; once, however often it is tried."""
        async with self.database.writing() as connection:
            moved = await connection.execute(
                update(ATTEMPTS).where(*_of(job), ATTEMPTS.c.offset == before).values(offset=after)
            )
            if moved.rowcount == 1:
                await _in_turn(connection, job.id)
                await _add_events(connection, job.id, job.attempt, events)

    # ---- what they reported

    async def add_event(self, job: Job, event: Event) -> None:
        async with self.database.writing() as connection:
            await _in_turn(connection, job.id)
            await _add_events(connection, job.id, job.attempt, [event])

    async def events(
        self,
        job: Job,
        *,
        types: Collection[str] | None = None,
        after: int = 0,
        limit: int | None = None,
    ) -> list[JobEvent]:
        """In the order in which they were told, from the one after number `after`."""
        query = select(EVENTS).where(EVENTS.c.job_id == job.id, EVENTS.c.number > after)
        if types is not None:
            query = query.where(EVENTS.c.type.in_(types))
        async with self.database.reading() as connection:
            rows = (await connection.execute(query.order_by(EVENTS.c.number).limit(limit))).mappings().all()
        return [_to_event(row) for row in rows]

    async def all_events(self, job: Job, *, types: Collection[str]) -> AsyncIterator[list[JobEvent]]:
        """All events of these types, read in pieces: there may be one for each of a million steps."""
        after = 0
        while events := await self.events(job, types=types, after=after, limit=PIECE):
            yield events
            after = events[-1].number

    async def page_of_events(
        self, job: Job, *, after: str | None, limit: int, order: Order = "desc"
    ) -> tuple[list[JobEvent], bool]:
        """One page, and whether more follow. Raises NotFound where there is no event `after` of this job."""
        within = EVENTS.c.job_id == job.id
        query = select(EVENTS).where(within)
        async with self.database.reading() as connection:
            rows, more = await read_page(
                connection, EVENTS, query, within=within, after=after, limit=limit, order=order
            )
        return [_to_event(row) for row in rows], more

    async def checkpoints(self, job: Job, *where: ColumnElement[bool]) -> list[JobCheckpoint]:
        """The job's checkpoints, ordered by step."""
        query = select(CHECKPOINTS).where(CHECKPOINTS.c.job_id == job.id, *where).order_by(CHECKPOINTS.c.step)
        async with self.database.reading() as connection:
            return [_to_checkpoint(row) for row in (await connection.execute(query)).mappings()]

    async def page_of_checkpoints(
        self, job: Job, *where: ColumnElement[bool], after: str | None, limit: int
    ) -> tuple[list[JobCheckpoint], bool]:
        """The newest first, and whether more follow. Raises NotFound where there is no checkpoint `after` of it."""
        within = CHECKPOINTS.c.job_id == job.id
        query = select(CHECKPOINTS).where(within, *where)
        async with self.database.reading() as connection:
            rows, more = await read_page(connection, CHECKPOINTS, query, within=within, after=after, limit=limit)
        return [_to_checkpoint(row) for row in rows], more

    async def set_announced(self, checkpoint: JobCheckpoint) -> None:
        async with self.database.writing() as connection:
            await connection.execute(
                update(CHECKPOINTS).where(CHECKPOINTS.c.id == checkpoint.id).values(announced=True)
            )


async def _change(
    connection: AsyncConnection,
    id: str,
    values: Mapping[str, Any],
    *events: Event,
    attempt: int,
    before: Collection[JobStatus],
) -> Job | None:
    which = (JOBS.c.id == id, JOBS.c.attempt == attempt, JOBS.c.status.in_(before))
    found = await connection.execute(update(JOBS).where(*which).values(**values).returning(JOBS))
    row = found.mappings().one_or_none()
    if row is None:
        return None
    job = _to_job(row)
    await _add_events(connection, id, job.attempt, events)
    return job


async def _in_turn(connection: AsyncConnection, job_id: str) -> None:
    """A job's events get their numbers in the order in which they are seen."""
    await connection.execute(select(JOBS.c.id).where(JOBS.c.id == job_id).with_for_update())


async def _add_events(connection: AsyncConnection, job_id: str, attempt: int, events: Sequence[Event]) -> None:
    """A step, an evaluation or a checkpoint that the table has is passed over."""
    if not events:
        return
    made = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    rows = [
        {
            "id": new_id("ftevent-"),
            "job_id": job_id,
            "attempt": attempt,
            "type": event.type,
            "step": getattr(event, "step", None),
            "time": event.time,
            "data": event.model_dump(mode="json"),
        }
        for event in events
    ]
    await connection.execute(made(EVENTS).on_conflict_do_nothing(), rows)
    checkpoints = [
        {
            "id": new_id("ftckpt_"),
            "job_id": job_id,
            "attempt": attempt,
            "step": event.step,
            "path": event.path,
            "created_at": event.time,
            "announced": False,
        }
        for event in events
        if isinstance(event, Checkpoint)
    ]
    if checkpoints:
        await connection.execute(made(CHECKPOINTS).on_conflict_do_nothing(), checkpoints)


def _of(job: Job) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return ATTEMPTS.c.job_id == job.id, ATTEMPTS.c.attempt == job.attempt


def _needed(users: Sequence[Job], access: Access) -> Conflict:
    known = [job.id for job in users if access.covers(job.owner)]
    advice = "wait until it has ended, or cancel it first" if known else "wait until it has ended"
    text = f"{f'The job {known[0]}' if known else 'Another job'} needs what this one has made: {advice}."
    return Conflict(text, param="id")


def _no_such(id: str) -> NotFound:
    return NotFound(f"No such job: {id[:100]}", param="id")


def _to_job(row: RowMapping) -> Job:
    values = {name: value for name, value in row.items() if name != "number"}
    return Job(**{**values, "status": JobStatus(row["status"])})


def _to_event(row: RowMapping) -> JobEvent:
    event = EVENT.validate_python(row["data"])
    return JobEvent(number=row["number"], id=row["id"], attempt=row["attempt"], event=event)


def _to_checkpoint(row: RowMapping) -> JobCheckpoint:
    values = {name: value for name, value in row.items() if name not in ("number", "job_id")}
    return JobCheckpoint(**{**values, "path": PurePosixPath(row["path"])})
