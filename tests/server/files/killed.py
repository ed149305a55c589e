"""Changes to files that are killed at every one of their steps: row and content are both there, or neither."""

import asyncio
import os
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import alembic.command  # noqa: F401  # before the fork: what it reads is no step

from server.files.files import Files, Quota
from server.pools import Pools
from server.store.access import SERVER
from server.store.database import Database
from server.store.reserve import DiskReserve
from tests.killed import Killer, check_all_or_nothing

EVENTS = {"open", "os.rename", "os.remove", "os.link"}
killer = Killer()


class Statements(sqlite3.Connection):
    """What is committed is a step."""

    def commit(self) -> None:
        killer.step()
        super().commit()
        killer.step()


async def server(state: Path, work: Callable[[Files], Awaitable[Any]]) -> Any:
    database = Database(state)
    files = Files(
        database,
        state / "files",
        DiskReserve(state, 0),
        Pools().files,
        max_bytes=1 << 20,
        quota=Quota(files=1000, bytes=1 << 30),
    )
    await database.open()
    await files.open()
    seen = await work(files)
    await database.close()
    return seen


async def prepare(files: Files) -> None:
    await files.create("batch", "old.jsonl", b"old", owner=None)


async def create(files: Files) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"n" * 2_000_000
        yield b"new"

    await files.create("batch", "new.jsonl", pieces(), owner=None, expires_after=3600)


async def delete(files: Files) -> None:
    [old], _ = await files.list(SERVER)
    await files.delete(old.id, SERVER)


def look(state: Path) -> list[str]:
    """The files' names; what is stored is what is listed."""

    async def seen(files: Files) -> list[str]:
        listed, _ = await files.list(SERVER)
        stored = {path.name for path in (state / "files").glob("*/*")}
        assert stored == {file.id for file in listed}, (stored, listed)
        for file in listed:
            _, content = await files.read(file.id, SERVER)
            with content:
                assert len(content.read()) == file.bytes
        return sorted(file.filename for file in listed)

    names: list[str] = asyncio.run(server(state, seen))
    return names


def kill_at_every_step(
    state: Path, prepared: Path, work: Callable[[Files], Awaitable[None]], look: Callable[[Path], list[str]]
) -> str:
    def begin_anew() -> None:
        shutil.rmtree(state)
        shutil.copytree(prepared, state)

    def change(steps: int) -> None:
        async def armed(files: Files) -> None:
            killer.arm(steps)
            await work(files)
            killer.disarm()

        asyncio.run(server(state, armed))

    return check_all_or_nothing(begin_anew, change, lambda: look(state))


def kill_each(
    root: Path,
    prepare: Callable[[Files], Awaitable[None]],
    works: Sequence[Callable[[Files], Awaitable[None]]],
    look: Callable[[Path], list[str]],
) -> None:
    """Each of the works, from what `prepare` has made; `look` says what is there."""
    connect = sqlite3.connect
    sqlite3.connect = lambda *args, **kwargs: connect(*args, **kwargs, factory=Statements)  # type: ignore[assignment]
    killer.watch_events(EVENTS)
    killer.watch_calls(os, "fsync")
    state, prepared = root / "state", root / "prepared"
    asyncio.run(server(state, prepare))
    shutil.copytree(state, prepared)
    for work in works:
        sys.stdout.write(f"{work.__name__}: {kill_at_every_step(state, prepared, work, look)}\n")


if __name__ == "__main__":
    kill_each(Path(sys.argv[1]), prepare, (create, delete), look)
