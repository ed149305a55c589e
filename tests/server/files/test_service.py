"""What other parts of the server do with files; on SQLite and on Postgres."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engines.errors import NotFound, StorageFull
from server.files import storage
from server.files.files import Files, Quota
from server.pools import Pools
from server.store.access import SERVER
from server.store.database import Database
from server.store.reserve import DiskReserve


@pytest.fixture
async def files(database_url: str, tmp_path: Path) -> AsyncIterator[Files]:
    database = Database(tmp_path, database_url)
    await database.open()
    files = Files(
        database,
        tmp_path / "files",
        DiskReserve(tmp_path, 0),
        Pools().files,
        max_bytes=1 << 20,
        quota=Quota(files=1000, bytes=1 << 30),
    )
    await files.open()
    yield files
    await database.close()


def contents(folder: Path) -> list[Path]:
    return [*(folder / "files").glob("*/*")]


async def content_of(files: Files, id: str) -> bytes:
    _, content = await files.read(id, SERVER)
    with content:
        return content.read()


async def test_a_file_is_made_of_bytes_a_path_or_pieces(files: Files, tmp_path: Path) -> None:
    (tmp_path / "result").write_bytes(b"from a path")

    async def pieces() -> AsyncIterator[bytes]:
        yield b"from "
        yield b"pieces"

    for content, expected in ((b"bytes", b"bytes"), (tmp_path / "result", b"from a path"), (pieces(), b"from pieces")):
        file = await files.create("fine-tune-results", "step_metrics.csv", content, owner=None)
        assert await content_of(files, file.id) == expected
        assert await files.get(file.id, SERVER) == file
    assert (tmp_path / "result").exists()


async def test_a_copy_outlives_the_file(files: Files, tmp_path: Path) -> None:
    file = await files.create("fine-tune", "a.jsonl", b"content", owner=None)
    assert await files.copy_to(file.id, SERVER, tmp_path / "data.jsonl") == file
    await files.delete(file.id, SERVER)
    assert (tmp_path / "data.jsonl").read_bytes() == b"content"
    for call in (
        files.get(file.id, SERVER),
        files.read(file.id, SERVER),
        files.copy_to(file.id, SERVER, tmp_path / "other"),
    ):
        with pytest.raises(NotFound, match=file.id):
            await call


async def test_a_disk_that_knows_no_links_gets_a_copy(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", no_link)
    file = await files.create("fine-tune", "a.jsonl", b"content", owner=None)
    await files.copy_to(file.id, SERVER, tmp_path / "data.jsonl")
    assert (tmp_path / "data.jsonl").read_bytes() == b"content"
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize("step", ["fsync", "open"])
async def test_a_full_disk_is_said_and_leaves_nothing(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*args: object, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        owner: Any = os if step == "fsync" else Path
        patch.setattr(owner, step, full)
        with pytest.raises(StorageFull, match="no room left"):
            await files.create("batch", "a.jsonl", b"content", owner=None)
    assert contents(tmp_path) == []
    assert (await files.list(SERVER))[0] == []
    await files.create("batch", "a.jsonl", b"content", owner=None)


async def test_a_source_that_fails_leaves_nothing(files: Files, tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * (2 * storage.WRITE_BYTES)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await files.create("batch", "a.jsonl", pieces(), owner=None)
    assert contents(tmp_path) == []


async def test_a_creation_cancelled_at_any_time_has_happened_or_has_not(files: Files, tmp_path: Path) -> None:
    for turns in range(0, 120, 3):
        task = asyncio.create_task(files.create("batch", "a.jsonl", b"content", owner=None))
        for _ in range(turns):
            await asyncio.sleep(0 if turns % 2 else 0.0002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        listed, _ = await files.list(SERVER)
        assert {file.id for file in listed} == {path.name for path in contents(tmp_path)}
    assert listed


async def test_a_change_of_ones_own_adds_a_file_with_it(files: Files, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        async with files.storing(b"content") as stored, files._database.writing() as connection:
            await files.add(connection, stored.as_file("batch_output", "output.jsonl", owner=None, expires_after=None))
            raise RuntimeError
    assert contents(tmp_path) == []
    async with files.storing(b"content") as stored, files._database.writing() as connection:
        file = stored.as_file("batch_output", "output.jsonl", owner=None, expires_after=3600)
        await files.add(connection, file)
    assert await files.get(file.id, SERVER) == file
