"""Whose rows are: what a query with one's access finds, and what databases become that knew no owners."""

from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import insert, select, table
from sqlalchemy.sql import column

from engines.errors import Conflict, NotFound
from server.batches.batch import Batch
from server.batches.store import BatchStore
from server.batches.table import BATCHES
from server.files.files import Files, Quota
from server.files.table import FILES
from server.http.keys.caller import ANYBODY
from server.inference.fine_tuned import FineTunedModels
from server.jobs.job import Job, JobStatus
from server.jobs.store import JobStore
from server.jobs.table import JOBS
from server.pools import Pools
from server.store.access import SERVER, Access
from server.store.database import Database
from server.store.reserve import DiskReserve

ACME, ZETA = (Access(owner=name, everything=False) for name in ("acme", "zeta"))
ADMIN = Access(owner="ops", everything=True)
NAMELESS = Access(owner=None, everything=False)


@pytest.fixture
async def database(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path, database_url)
    await database.open()
    yield database
    await database.close()


def job(id: str, owner: str | None, status: JobStatus = JobStatus.SUCCEEDED) -> Job:
    empty = ("told", "devices", "metadata", "fine_tuning", "fine_tuned_model", "queued_at", "not_before", "started_at")
    none: dict[str, Any] = dict.fromkeys((*empty, "finished_at", "error", "result"))
    return Job(
        id=id, type="sft", status=status, parameters={}, priority=0, attempt=0, deaths=0, validated=True, created_at=1,
        owner=owner, **none,
    )  # fmt: skip


def batch(id: str, owner: str | None) -> Batch:
    return Batch(
        id=id, status="completed", endpoint="/v1/embeddings", input_file_id="file-x", completion_window="24h",
        output_expires_after=None, metadata=None, owner=owner, by_admin=False, created_at=1, expires_at=2,
    )  # fmt: skip


Get = Callable[[str, Access], Any]
Page = Callable[..., Any]


async def files_of(database: Database, tmp_path: Path) -> tuple[Get, Page, list[str]]:
    files = Files(
        database,
        tmp_path / "files",
        DiskReserve(tmp_path, 0),
        Pools().files,
        max_bytes=100,
        quota=Quota(files=9, bytes=999),
    )
    await files.open()
    made = [await files.create("batch", "a.jsonl", b"x", owner=owner) for owner in ("acme", "zeta", None)]
    return files.get, files.list, [file.id for file in made]


async def jobs_of(database: Database, tmp_path: Path) -> tuple[Get, Page, list[str]]:
    store = JobStore(database)
    for id, owner in (("job-a", "acme"), ("job-z", "zeta"), ("job-n", None)):
        await store.create(job(id, owner), SERVER)
    return store.get, store.page, ["job-a", "job-z", "job-n"]


async def batches_of(database: Database, tmp_path: Path) -> tuple[Get, Page, list[str]]:
    store = BatchStore(database)
    for id, owner in (("batch_a", "acme"), ("batch_z", "zeta"), ("batch_n", None)):
        await store.add(batch(id, owner))
    return store.get, store.page, ["batch_a", "batch_z", "batch_n"]


def ids(page: tuple[Iterable[Any], bool]) -> list[str]:
    return [each.id for each in page[0]]


@pytest.mark.parametrize("made", [files_of, jobs_of, batches_of])
async def test_everybody_finds_their_own_and_an_administrator_all(
    database: Database, tmp_path: Path, made: Any
) -> None:
    get, page, (a, z, nobodys) = await made(database, tmp_path)
    seen: tuple[tuple[Access, list[str]], ...] = (
        (ACME, [a]),
        (ZETA, [z]),
        (NAMELESS, []),
        (ADMIN, [nobodys, z, a]),
        (SERVER, [nobodys, z, a]),
    )
    for access, expected in seen:
        assert ids(await page(access, after=None, limit=10)) == expected
        for id in (a, z, nobodys):
            if id in expected:
                assert (await get(id, access)).id == id
            else:
                with pytest.raises(NotFound):
                    await get(id, access)


@pytest.mark.parametrize("made", [files_of, jobs_of, batches_of])
async def test_a_page_after_what_is_anothers_is_one_after_nothing(
    database: Database, tmp_path: Path, made: Any
) -> None:
    _, page, (a, z, _) = await made(database, tmp_path)
    messages = set()
    for id in (z, f"{z}x"):
        with pytest.raises(NotFound) as refused:
            await page(ACME, after=id, limit=10)
        messages.add(refused.value.message.replace(id, "ID"))
    assert len(messages) == 1
    assert ids(await page(ADMIN, after=z, limit=10)) == [a]


async def test_a_job_uses_what_its_maker_sees(database: Database) -> None:
    store = JobStore(database)
    await store.create(job("job-a", "acme"), ACME)
    with pytest.raises(Conflict, match="job-a was deleted"):
        await store.create(job("job-z", "zeta"), ZETA, needs=["job-a"])
    await store.create(job("job-o", "ops"), ADMIN, needs=["job-a"])


async def test_who_deletes_is_not_told_which_job_of_anothers_needs_it(database: Database) -> None:
    store = JobStore(database)
    await store.create(job("job-a", "acme"), ACME)
    await store.create(job("job-o", "ops", JobStatus.QUEUED), ADMIN, needs=["job-a"])
    for access, told in ((ACME, "Another job needs"), (ADMIN, "The job job-o needs")):
        with pytest.raises(Conflict, match=told) as refused:
            await store.delete("job-a", access, before={JobStatus.SUCCEEDED}, needed_by=lambda other: True)
        assert ("job-o" in refused.value.message) == (access is ADMIN)
    assert not await store.delete("job-a", ZETA, before={JobStatus.SUCCEEDED}, needed_by=lambda other: False)
    assert await store.delete("job-a", ACME, before={JobStatus.SUCCEEDED}, needed_by=lambda other: False)


async def test_the_name_of_a_model_stays_its_owners(database: Database) -> None:
    models = FineTunedModels(database)
    await models.open()
    name = "ft:echo:org::abc"
    await models.give(f"{name}:ckpt-step-2", "acme")
    await models.give(name, "zeta")
    await models.give("ft:echo:org::nobodys", None)
    again = FineTunedModels(database)
    await again.open()
    for each in (models, again):
        for known in (name, f"{name}:ckpt-step-2", f"{name}:ckpt-step-4"):
            assert [each.are_known_to(access, known) for access in (ACME, ZETA, ADMIN)] == [True, False, True]
        seen = [each.are_known_to(access, "ft:echo:org::nobodys") for access in (ACME, NAMELESS, ADMIN)]
        assert seen == [False, False, True]
        assert each.are_known_to(ZETA, "an-adapter")


async def test_before_the_database_is_open_models_of_jobs_are_nobodys(tmp_path: Path) -> None:
    models = FineTunedModels(Database(tmp_path))
    assert [models.are_known_to(access, "ft:echo:org::abc") for access in (ACME, ADMIN)] == [False, True]


# ---- databases that knew no owners


async def test_what_was_made_before_there_were_owners_is_nobodys_and_its_batches_go_on(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", _only_to("0004"))
        old = Database(tmp_path, database_url)
        await old.open()
    async with old.writing() as connection:
        for rows in (FILES, BATCHES, JOBS):
            row = _old_row(rows.name)
            before = table(rows.name, *(column(name, rows.c[name].type) for name in row))
            await connection.execute(insert(before).values(row))
    await old.close()
    new = Database(tmp_path, database_url)
    await new.open()
    async with new.reading() as connection:
        for rows in (FILES, BATCHES, JOBS):
            assert (await connection.execute(select(rows.c.id, rows.c.owner))).all() == [("x", None)]
    assert (await BatchStore(new).get("x", SERVER)).caller == ANYBODY
    with pytest.raises(NotFound):
        await JobStore(new).get("x", ACME)
    await new.close()


def _only_to(revision: str) -> Callable[[Config, str], None]:
    upgrade = command.upgrade
    return lambda config, head: upgrade(config, revision)


def _old_row(name: str) -> dict[str, Any]:
    values: dict[str, dict[str, Any]] = {
        "files": {"purpose": "batch", "filename": "a", "bytes": 1, "sha256": "", "created_at": 1},
        "batches": {"status": "completed", "endpoint": "e", "input_file_id": "f", "completion_window": "24h",
                    "total": 0, "completed": 0, "failed": 0, "input_tokens": 0, "cached_tokens": 0, "output_tokens": 0,
                    "reasoning_tokens": 0, "created_at": 1, "expires_at": 1},
        "jobs": {"type": "sft", "status": "failed", "parameters": {}, "priority": 0, "attempt": 0, "deaths": 0,
                 "validated": True, "created_at": 1.0},
    }  # fmt: skip
    return {"id": "x", **values[name]}
