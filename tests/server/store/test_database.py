"""The database: one owner, whole transactions, tables as declared; on SQLite and on Postgres."""

import asyncio
import shutil
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Text, column, insert, select, table, text, update
from sqlalchemy.ext.asyncio import create_async_engine

import server.app  # noqa: F401  (declares all tables)
from engines.errors import Conflict, InvalidRequest, StoreUnavailable
from server.store import database as store_database
from server.store import ownership
from server.store.address import read_address
from server.store.database import Database, UnusableDatabase
from server.store.ids import new_id
from server.store.migrate import MIGRATIONS, NewerDatabase
from server.store.tables import METADATA
from tests.postgres import Postgres
from tests.until import PATIENCE

NOTES = table("notes", column("id", Text), column("words", Text))


@pytest.fixture
async def database(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path, database_url)
    await database.open()
    async with database.writing() as connection:
        await connection.execute(text("CREATE TABLE notes (id TEXT PRIMARY KEY, words TEXT)"))
    yield database
    await database.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "PATIENCE_SECONDS", 0.2)


async def test_what_is_written_is_there_after_a_restart(database: Database, database_url: str, tmp_path: Path) -> None:
    async with database.writing() as connection:
        await connection.execute(insert(NOTES).values(id="a", words="kept"))
    await database.close()
    again = Database(tmp_path, database_url)
    await again.open()
    async with again.reading() as connection:
        assert (await connection.execute(select(NOTES.c.words))).scalars().all() == ["kept"]
    await again.close()


async def test_a_transaction_that_fails_changes_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError):
        async with database.writing() as connection:
            await connection.execute(insert(NOTES).values(id="a"))
            raise RuntimeError
    async with database.reading() as connection:
        assert (await connection.execute(select(NOTES))).all() == []


async def test_writers_that_read_first_come_one_after_another(database: Database) -> None:
    async with database.writing() as connection:
        await connection.execute(insert(NOTES).values(id="a", words=""))

    async def add(letter: str) -> None:
        async with database.writing() as connection:
            row = select(NOTES.c.words).with_for_update()
            words = (await connection.execute(row)).scalar_one()
            await asyncio.sleep(0.001)
            await connection.execute(update(NOTES).values(words=words + letter))

    await asyncio.gather(*(add(letter) for letter in "abcdefghijkl"))
    async with database.reading() as connection:
        assert sorted((await connection.execute(select(NOTES.c.words))).scalar_one()) == list("abcdefghijkl")


async def test_a_writer_that_is_cancelled_leaves_the_turn_to_the_next(database: Database) -> None:
    began = asyncio.Event()

    async def never_ends() -> None:
        async with database.writing() as connection:
            await connection.execute(insert(NOTES).values(id="a"))
            began.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(never_ends())
    await began.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with database.writing() as connection:
        await connection.execute(insert(NOTES).values(id="a", words="second"))


async def test_no_writer_loses_a_cancellation(database: Database) -> None:
    async def write() -> None:
        async with database.writing() as connection:
            await connection.execute(select(NOTES))
        await asyncio.sleep(3600)

    for turns in range(40):
        task = asyncio.create_task(write())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,), timeout=PATIENCE)
        assert task.cancelled(), turns


async def test_the_tables_are_those_that_the_code_declares(database: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(
            connection, opts={"include_name": lambda name, kind, parents: name != "notes", "compare_type": True}
        )
        return compare_metadata(context, METADATA)

    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_second_server_is_told_so_and_what_to_do(
    database: Database, database_url: str, tmp_path: Path, impatient: None
) -> None:
    second = Database(tmp_path / "second", database_url)
    with pytest.raises(UnusableDatabase, match=r"another server uses the database .*: stop it, or .*--without_state"):
        await second.open()
    await database.close()
    await second.open()
    async with second.writing():
        pass
    await second.close()


async def test_a_server_waits_for_one_that_is_about_to_end(
    database: Database, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "PATIENCE_SECONDS", 3600)
    second = Database(tmp_path / "second", database_url)
    opening = asyncio.create_task(second.open())
    await asyncio.sleep(0.3)
    assert not opening.done()
    await database.close()
    await opening
    async with second.writing():
        pass
    await second.close()


async def test_without_state_every_transaction_is_refused() -> None:
    database = Database(None)
    await database.open()
    for transaction in (database.reading, database.writing):
        with pytest.raises(Conflict, match="keeps no files and runs no jobs: it was started with --without_state"):
            async with transaction():
                pass
    await database.close()


async def test_what_another_program_locks_is_told_as_away(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In SQLite its whole file, in Postgres a table."""
    monkeypatch.setattr(store_database, "BUSY_SECONDS", 1)
    await database.close()
    await database.open()
    other = create_async_engine(read_address(database_url))
    async with other.connect() as program:
        locking = "BEGIN IMMEDIATE" if other.dialect.name == "sqlite" else "LOCK TABLE notes"
        await program.exec_driver_sql(locking)
        writes = (write(database), write(database))
        assert [type(each) for each in await asyncio.gather(*writes, return_exceptions=True)] == [StoreUnavailable] * 2
        await program.rollback()
    await other.dispose()
    await write(database)


async def write(database: Database) -> None:
    async with database.writing() as connection:
        await connection.execute(insert(NOTES).values(id="a"))


async def test_a_database_of_a_later_version_is_not_touched(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    async with database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await database.close()
    with pytest.raises(NewerDatabase, match="later version"):
        await Database(tmp_path, database_url).open()


async def test_where_no_step_is_missing_none_is_read(
    database: Database, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.close()
    monkeypatch.setattr("alembic.command.upgrade", lambda *_: pytest.fail("the steps were read"))
    again = Database(tmp_path, database_url)
    await again.open()
    await again.close()


def test_the_number_of_a_step_begins_the_name_of_its_file() -> None:
    steps = [*ScriptDirectory(str(MIGRATIONS)).walk_revisions()]
    assert all(Path(step.path).name.startswith(f"{step.revision}_") for step in steps)
    assert sorted((step.revision for step in steps), reverse=True) == [step.revision for step in steps]


# ---- SQLite


async def test_unless_told_otherwise_it_is_a_file_that_only_this_user_can_read(tmp_path: Path) -> None:
    database = Database(tmp_path / "state")
    await database.open()
    await database.close()
    assert (tmp_path / "state" / "store" / "tuneserve.sqlite3").is_file()
    for folder in (tmp_path / "state", tmp_path / "state" / "store"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_a_state_dir_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(UnusableDatabase, match=r"the state_dir .*/state cannot be used .*--without_state"):
        await Database(tmp_path / "state").open()


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_is_gone_is_not_written_to(tmp_path: Path, replaced: bool) -> None:
    database = Database(tmp_path / "state")
    await database.open()
    async with database.writing() as connection:
        await connection.execute(text("CREATE TABLE notes (id TEXT PRIMARY KEY, words TEXT)"))
    file = tmp_path / "state" / "store" / "tuneserve.sqlite3"
    file.rename(tmp_path / "elsewhere")
    if replaced:
        shutil.copy(tmp_path / "elsewhere", file)
    for transaction in (database.reading, database.writing):
        with pytest.raises(StoreUnavailable, match="removed or replaced"):
            async with transaction():
                pass
    (tmp_path / "elsewhere").rename(file)
    await write(database)
    await database.close()


async def test_a_file_that_is_no_database_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("not a database" * 1000)
    with pytest.raises(UnusableDatabase, match="not a database"):
        await Database(tmp_path, f"sqlite:///{tmp_path / 'x'}").open()


# ---- Postgres


async def test_a_database_that_is_not_there_ends_the_start(postgres: Postgres, tmp_path: Path) -> None:
    for address in (f"postgresql://app@127.0.0.1:{postgres.port}/nothing", "postgresql://app@127.0.0.1:1/nothing"):
        with pytest.raises(UnusableDatabase, match="cannot be used"):
            await Database(tmp_path, address).open()


async def test_a_server_whose_lock_was_lost_takes_it_again(postgres: Postgres, tmp_path: Path, impatient: None) -> None:
    with postgres.database() as url:
        first, second = Database(tmp_path, url), Database(tmp_path, url)
        await first.open()
        postgres.stop()
        postgres.start()
        async with first.writing():
            pass
        with pytest.raises(UnusableDatabase, match="another server uses the database"):
            await second.open()
        await first.close()


async def test_a_server_whose_lock_was_lost_and_taken_writes_no_more(
    postgres: Postgres, tmp_path: Path, impatient: None
) -> None:
    with postgres.database() as url:
        first, second = Database(tmp_path, url), Database(tmp_path, url)
        await first.open()
        postgres.stop()
        for transaction in (first.writing, first.reading):
            with pytest.raises(StoreUnavailable):
                async with transaction():
                    pass
        postgres.start()
        await second.open()
        with pytest.raises(Conflict, match="another server uses the database"):
            async with first.writing():
                pass
        async with second.writing():
            pass
        await first.close()
        await second.close()


# ---- what is named


@pytest.mark.parametrize(
    "url", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "nonsense", "sqlite+pysqlite:///x"]
)
def test_what_cannot_be_used_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        Database(tmp_path, url)


def test_ids_say_what_they_name_and_do_not_repeat() -> None:
    ids = {new_id("file-") for _ in range(100)}
    assert len(ids) == 100
    assert all(id.startswith("file-") and id[5:].isalnum() and len(id) == 29 for id in ids)
