"""What nobody foresaw befalls a job: it fails with the server's word for it, and the queue goes on."""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from server.jobs.job import JobStatus
from server.jobs.processes import MARK
from server.store.access import SERVER
from tests.server.jobs.conftest import Office
from tests.until import async_until

LONG = {"steps": 1000, "seconds": 0.02}


@contextlib.asynccontextmanager
async def broken(office: Office, when: str) -> AsyncIterator[None]:
    """The database refuses this change within the block, with an error of no kind that is expected."""
    trigger = f"CREATE TRIGGER broken BEFORE {when} BEGIN SELECT RAISE(ABORT, 'broken'); END"
    await asyncio.to_thread(execute, office, trigger)
    yield
    await asyncio.to_thread(execute, office, "DROP TRIGGER broken")


def execute(office: Office, statement: str) -> None:
    path = office.folder / "store" / "tuneserve.sqlite3"
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as database, database:
        database.execute(statement)


def failures(office: Office, task: str) -> float:
    return office.registry.get_sample_value("tuneserve:task_failures_total", {"task": task}) or 0


def workers(office: Office) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK, "").startswith(office.database.id):
                found.append(process.pid)
    return found


async def test_a_job_whose_run_breaks_off_fails_and_its_worker_is_ended(office: Office) -> None:
    job = await office.create(LONG)
    await office.until_step(job, 1)
    async with broken(office, "UPDATE ON job_attempts"):
        failed = await office.until(job, JobStatus.FAILED)
    assert failed.error is not None and failed.error["code"] == "internal_error"
    await async_until(lambda: not workers(office))
    assert failures(office, "job") == 1
    await office.until(await office.create(), JobStatus.SUCCEEDED)


async def test_a_job_that_cannot_be_marked_as_failed_is_as_soon_as_it_can(office: Office) -> None:
    job = await office.create(LONG)
    await office.until_step(job, 1)
    async with broken(office, "INSERT ON job_events"):
        await async_until(lambda: failures(office, "job") >= 2)
        assert (await office.jobs.store.get(job.id, SERVER)).status is JobStatus.RUNNING
    await office.until(job, JobStatus.FAILED)


async def test_a_queue_that_cannot_be_looked_at_is_looked_at_again(office: Office) -> None:
    async with broken(office, "INSERT ON job_attempts"):
        job = await office.create()
        await async_until(lambda: failures(office, "jobs") >= 1)
        assert (await office.jobs.store.get(job.id, SERVER)).status is JobStatus.QUEUED
    await office.until(job, JobStatus.SUCCEEDED)


async def test_a_look_at_data_that_takes_too_long_fails_the_job_and_is_ended(tmp_path: Path) -> None:
    office = Office(tmp_path / "state", validation_timeout=1)
    await office.open()
    job = await office.create({"validation_seconds": 600})
    failed = await office.until(job, JobStatus.FAILED)
    assert failed.error is not None
    assert (failed.error["code"], failed.attempt) == ("validation_timeout", 0)
    assert failed.error["message"] == "The job's data could not be looked at within 1 s (job_validation_timeout)."
    await async_until(lambda: not workers(office))
    await office.close()


async def test_a_job_whose_folder_is_removed_beneath_it_fails(tmp_path: Path) -> None:
    office = Office(tmp_path / "state", retries=0)
    await office.open()
    job = await office.create(LONG)
    await office.until_step(job, 1)
    shutil.move(office.jobs.folders.job(job.id), tmp_path / "removed")  # at once, whatever the worker is just writing
    failed = await office.until(job, JobStatus.FAILED)
    assert failed.error is not None and failed.error["code"] in ("storage_unusable", "worker_died")
    await office.until(await office.create(), JobStatus.SUCCEEDED)
    await office.close()
