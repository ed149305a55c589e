"""What is known of jobs, on SQLite and on Postgres."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from engines.errors import Conflict, NotFound
from server.jobs.job import Job, JobStatus
from server.jobs.store import CURVE, JobStore, message
from server.jobs.table import JOBS
from server.store.access import SERVER
from server.store.database import Database
from training.folder import Checkpoint, Evaluation, Event, Message, Step

QUEUED, RUNNING, FAILED = JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.FAILED


@pytest.fixture
async def store(database_url: str, tmp_path: Path) -> AsyncIterator[JobStore]:
    database = Database(tmp_path, database_url)
    await database.open()
    yield JobStore(database)
    await database.close()


def job(id: str, **values: Any) -> Job:
    empty = dict.fromkeys(
        ("devices", "metadata", "fine_tuning", "fine_tuned_model", "queued_at", "not_before", "started_at")
    ) | dict.fromkeys(("finished_at", "error", "result", "told", "owner"))
    defaults = {
        "type": "sft", "status": QUEUED, "parameters": {}, "priority": 0, "attempt": 0, "deaths": 0, "validated": True,
        "created_at": time.time(),
    }  # fmt: skip
    return Job(id=id, **{**empty, **defaults, **values})


def step(number: int, loss: float = 1.0) -> Step:
    return Step(time=1.0, step=number, total_steps=9, epoch=0.5, metrics={"loss": loss})


def steps(told: Iterable[Any]) -> list[int]:
    return [each.event.step for each in told]


async def test_a_job_is_what_was_created(store: JobStore) -> None:
    one = job("job-1", metadata={"a": "b"}, fine_tuning={"model": "m"}, told={"x": [1, None]})
    await store.create(one, SERVER, message("Created"))
    assert await store.get("job-1", SERVER) == one
    [created] = await store.events(one)
    assert isinstance(created.event, Message) and created.event.message == "Created"
    with pytest.raises(NotFound):
        await store.get("job-2", SERVER)


async def test_of_many_who_would_change_a_job_one_does(store: JobStore) -> None:
    await store.create(job("job-1"), SERVER)
    one = await store.get("job-1", SERVER)
    begun = await asyncio.gather(*(store.begin_attempt(one) for _ in range(5)))
    assert [each.attempt for each in begun if each is not None] == [1]
    assert await store.change("job-1", attempt=0, before={RUNNING}, status=JobStatus.FAILED) is None
    assert await store.change("job-1", attempt=1, before={QUEUED}, status=JobStatus.FAILED) is None
    changed = await store.change("job-1", message("x"), attempt=1, before={RUNNING}, status=JobStatus.SUCCEEDED)
    assert changed.status is JobStatus.SUCCEEDED
    assert len(await store.events(one)) == 1


async def test_the_queue_is_by_priority_and_then_by_age(store: JobStore) -> None:
    for id, priority, queued_at in (("a", 0, 5.0), ("b", 1, 9.0), ("c", 0, 3.0), ("d", 1, 8.0)):
        await store.create(job(id, priority=priority, queued_at=queued_at), SERVER)
    assert [each.id for each in await store.all(JOBS.c.status == QUEUED)] == ["d", "b", "c", "a"]


async def test_the_curve_of_a_long_job_is_read_in_pieces(store: JobStore) -> None:
    await store.create(job("job-1"), SERVER)
    one = await store.begin_attempt(await store.get("job-1", SERVER))
    await store.take_in(one, [step(number) for number in range(1200)], before=0, after=1)
    pieces = [steps(piece) async for piece in store.all_events(one, types=CURVE)]
    assert [len(piece) for piece in pieces] == [500, 500, 200]
    assert list(chain(*pieces)) == list(range(1200))


async def test_events_are_taken_in_once_and_steps_told_once(store: JobStore) -> None:
    await store.create(job("job-1"), SERVER)
    first = await store.begin_attempt(await store.get("job-1", SERVER))
    events: list[Event] = [
        step(1),
        step(2),
        Evaluation(time=1, step=2, metrics={}),
        Checkpoint(time=1, step=2, path="checkpoint-2"),
    ]
    for _ in range(2):
        await store.take_in(first, events, before=0, after=100)
    assert await store.offset(first) == 100
    await store.change("job-1", attempt=1, before={RUNNING}, status=QUEUED)
    second = await store.begin_attempt(await store.get("job-1", SERVER))
    again: list[Event] = [step(2, loss=9.0), step(3), Checkpoint(time=1, step=2, path="other")]
    await store.take_in(second, again, before=0, after=50)
    told: list[Any] = await store.events(second, types=["step"])
    assert [(each.event.step, each.attempt, each.event.metrics["loss"]) for each in told] == [
        (1, 1, 1.0), (2, 1, 1.0), (3, 2, 1.0),
    ]  # fmt: skip
    (checkpoint,) = await store.checkpoints(second)
    assert (checkpoint.attempt, str(checkpoint.path), checkpoint.announced) == (1, "checkpoint-2", False)
    await store.set_announced(checkpoint)
    assert [each.announced for each in await store.checkpoints(second)] == [True]


async def test_pages_follow_one_another(store: JobStore) -> None:
    await store.create(job("job-1"), SERVER)
    await store.begin_attempt(await store.get("job-1", SERVER))
    one = await store.get("job-1", SERVER)
    await store.take_in(one, [step(n) for n in range(1, 6)], before=0, after=9)
    page, more = await store.page_of_events(one, after=None, limit=2)
    assert (steps(page), more) == ([5, 4], True)
    page, more = await store.page_of_events(one, after=page[-1].id, limit=5)
    assert (steps(page), more) == ([3, 2, 1], False)


async def test_what_is_deleted_is_gone_with_all_that_it_reported(store: JobStore) -> None:
    one = await store.create(job("job-1"), SERVER, message("x"))
    assert not await store.delete("job-1", SERVER, before={RUNNING}, needed_by=nobody)
    assert await store.delete("job-1", SERVER, before={QUEUED}, needed_by=nobody)
    assert await store.events(one) == []
    assert await store.counts() == {}


async def test_what_an_unfinished_job_needs_is_there_until_it_ends(store: JobStore) -> None:
    def needs_it(other: Job) -> bool:
        return other.id == "job-2"

    await store.create(job("job-1"), SERVER)
    await store.create(job("job-2"), SERVER, needs=["job-1"])
    with pytest.raises(Conflict, match="job-2 needs"):
        await store.delete("job-1", SERVER, before={QUEUED}, needed_by=needs_it)
    await store.change("job-2", attempt=0, before={QUEUED}, status=FAILED)
    assert await store.delete("job-1", SERVER, before={QUEUED}, needed_by=needs_it)
    with pytest.raises(Conflict, match="job-1 was deleted"):
        await store.create(job("job-3"), SERVER, needs=["job-1"])
    assert await store.ids() == {"job-2"}


def nobody(other: Job) -> bool:
    return False
