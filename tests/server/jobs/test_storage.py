"""A disk that is full or read-only fails the job that needs it, in clear words, and nothing else."""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from engines.errors import StorageFull
from server.jobs.job import JobStatus
from server.jobs.storage import StorageUnusable
from server.store.access import SERVER
from tests.disks import fill, small_disk
from tests.server.jobs.conftest import Office

SIZE = 512 << 10


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system, where the jobs' folders will lie."""
    with small_disk(tmp_path / "jobs", SIZE) as disk:
        yield disk


@pytest.fixture
async def office(tmp_path: Path, disk: Path) -> AsyncIterator[Office]:
    office = Office(tmp_path, retries=0)
    await office.open()
    yield office
    await office.close()


async def test_a_disk_that_fills_up_fails_the_job_and_the_next_one_runs(office: Office, disk: Path) -> None:
    job = await office.create({"steps": 1000, "seconds": 0.02})
    await office.until_step(job, 1)
    rest = fill(disk)
    failed = await office.until(job, JobStatus.FAILED)
    assert failed.error["code"] == "insufficient_storage"
    assert "no room left" in failed.error["message"]
    fill(disk)  # what nothing goes on from has gone
    with pytest.raises((StorageFull, OSError)):
        await office.create()
    rest.unlink()
    await office.jobs.delete(job.id, SERVER)
    await office.until(await office.create(), JobStatus.SUCCEEDED)


async def test_what_is_kept_for_the_database_is_not_taken_by_jobs(tmp_path: Path, disk: Path) -> None:
    office = Office(tmp_path, reserve=SIZE // 4)
    await office.open()
    try:
        job = await office.create({"steps": 1000, "seconds": 0.02})
        await office.until_step(job, 3)
        rest = leave(disk, SIZE // 8)
        failed = await office.until(job, JobStatus.FAILED)
        assert failed.error is not None and failed.error["code"] == "insufficient_storage"
        leave(disk, SIZE // 8)  # what nothing goes on from has gone
        with pytest.raises(StorageFull, match="kept for its database"):
            await office.create()
        rest.unlink()
        (office.jobs.folders.job(job.id) / "plan.json").write_text('{"steps": 100}')
        await office.jobs.retry(job.id, SERVER)
        done = await office.until(job, JobStatus.SUCCEEDED)
        assert done.attempt == 2
    finally:
        await office.close()


def leave(disk: Path, left: int) -> Path:
    """Fill the disk but for so many bytes."""
    rest = disk / "rest"
    with rest.open("ab") as file:
        file.write(b"\0" * (free(disk) - left))
    return rest


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


async def test_a_read_only_folder_fails_the_job_and_the_server_is_well(tmp_path: Path, disk: Path) -> None:
    office = Office(tmp_path, max_running=0)
    await office.open()
    job = await office.until(await office.create(), JobStatus.QUEUED)
    await office.close()
    remount(disk, "ro")
    office = Office(tmp_path)
    await office.open()
    failed = await office.until(job, JobStatus.FAILED)
    assert (failed.error["code"], failed.attempt) == ("storage_unusable", 1)
    assert failed.error["message"] == "The server cannot write this job's folder: Read-only file system."
    with pytest.raises(StorageUnusable, match="Read-only"):
        await office.create()
    remount(disk, "rw")
    await office.jobs.retry(job.id, SERVER)
    await office.until(job, JobStatus.SUCCEEDED)
    await office.close()


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)
