"""Uploads that several callers end at once; on SQLite and on Postgres."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from engines.errors import Conflict, QuotaExceeded
from server.files.files import ALL_PURPOSES, Files, Quota
from server.pools import Pools
from server.store.access import SERVER
from server.store.database import Database
from server.store.reserve import DiskReserve
from server.uploads import uploads as module
from server.uploads.upload import Upload
from server.uploads.uploads import Uploads, new_upload


class Service:
    def __init__(self, database: Database, files: Files) -> None:
        self.files = files
        self.uploads = Uploads(database, files, max_bytes=1 << 20)

    async def create(self, size: int) -> Upload:
        upload = new_upload(owner=None, purpose="batch", filename="a.jsonl", size=size, file_expires_after=None)
        await self.uploads.create(upload)
        return upload

    async def add(self, upload: Upload, data: bytes) -> str:
        async def pieces() -> AsyncIterator[bytes]:
            yield data

        async with self.uploads.storing_part(pieces()) as content:
            return (await self.uploads.keep_part(upload, content)).id

    async def complete(self, upload: Upload, *ids: str) -> str:
        return (await self.uploads.complete(upload.id, SERVER, ALL_PURPOSES, ids, None))[1].id


@pytest.fixture
async def service(database_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    database = Database(tmp_path, database_url)
    await database.open()
    quota = Quota(files=1000, bytes=1 << 30)
    reserve = DiskReserve(tmp_path, 0)
    files = Files(database, tmp_path / "files", reserve, Pools().files, max_bytes=1 << 20, quota=quota)
    await files.open()
    yield Service(database, files)
    await database.close()


async def test_whoever_completes_an_upload_at_the_same_time_gets_the_same_file(
    service: Service, tmp_path: Path
) -> None:
    upload = await service.create(2)
    ids = [await service.add(upload, b"1"), await service.add(upload, b"2")]
    made = await asyncio.gather(*(service.complete(upload, *ids) for _ in range(5)))
    assert len(set(made)) == 1
    assert [path.name for path in (tmp_path / "files").glob("*/*")] == [made[0]]


async def test_an_upload_ends_in_one_way_only(service: Service, tmp_path: Path) -> None:
    upload = await service.create(1)
    part = await service.add(upload, b"1")
    cancelling = service.uploads.cancel(upload.id, SERVER, ALL_PURPOSES)
    ends = await asyncio.gather(service.complete(upload, part), cancelling, return_exceptions=True)
    assert [isinstance(end, Conflict) for end in ends].count(True) == 1
    with pytest.raises(Conflict):
        await service.add(upload, b"2")
    kept, _ = await service.files.list(SERVER)
    assert {path.name for path in (tmp_path / "files").glob("*/*")} == {file.id for file in kept}


async def test_an_upload_of_long_ago_makes_room_for_another(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UPLOADS", 1)
    old = new_upload(owner=None, purpose="batch", filename="a.jsonl", size=1, file_expires_after=None)
    await service.uploads.create(replace(old, created_at=old.created_at - module.KEPT_SECONDS))
    await service.create(1)
    with pytest.raises(QuotaExceeded):
        await service.create(1)
