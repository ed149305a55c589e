"""Ends of an upload that are killed at every one of their steps: its parts are there, or what they have become."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from server.files.files import ALL_PURPOSES, Files
from server.files.table import FILES
from server.store.access import SERVER
from server.uploads.table import UPLOADS
from server.uploads.uploads import Uploads, new_upload
from tests.server.files.killed import kill_each, server


def uploads_of(files: Files) -> Uploads:
    return Uploads(files._database, files, max_bytes=1 << 20)


async def only(files: Files) -> str:
    async with files._database.reading() as connection:
        id: str = (await connection.execute(select(UPLOADS.c.id))).scalar_one()
    return id


async def add(files: Files) -> None:
    uploads = uploads_of(files)
    upload = await uploads.get(await only(files), SERVER)

    async def pieces() -> Any:
        yield b"part"

    async with uploads.storing_part(pieces()) as content:
        await uploads.keep_part(upload, content)


async def prepare(files: Files) -> None:
    upload = new_upload(owner=None, purpose="batch", filename="new.jsonl", size=8, file_expires_after=None)
    await uploads_of(files).create(upload)
    for _ in range(2):
        await add(files)


async def complete(files: Files) -> None:
    id = await only(files)
    await uploads_of(files).complete(id, SERVER, ALL_PURPOSES, list(await files.parts_of(id)), None)


async def cancel(files: Files) -> None:
    await uploads_of(files).cancel(await only(files), SERVER, ALL_PURPOSES)


def look(state: Path) -> list[str]:
    """The upload's status, and what there is, which is what is stored."""

    async def seen(files: Files) -> list[str]:
        async with files._database.reading() as connection:
            rows = (await connection.execute(select(FILES.c.id, FILES.c.bytes))).all()
        stored = {path.name: path.stat().st_size for path in (state / "files").glob("*/*")}
        assert stored == {row.id: row.bytes for row in rows}, (stored, rows)
        upload = await uploads_of(files).get(await only(files), SERVER)
        assert (upload.status == "completed") == any(row.id == upload.file_id for row in rows)
        return [upload.status, *sorted(row.id[:4] for row in rows)]

    found: list[str] = asyncio.run(server(state, seen))
    return found


WORKS: tuple[Callable[[Files], Awaitable[None]], ...] = (add, complete, cancel)

if __name__ == "__main__":
    kill_each(Path(sys.argv[1]), prepare, WORKS, look)
