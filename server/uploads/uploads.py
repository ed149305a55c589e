"""Uploads in parts: each part is a content of its own until they are joined to one file, or dropped.

A part is a row of the files' table that no client sees: it counts for its owner's quota, expires with its upload, and
its content is kept or removed as those of files are.
"""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any
from weakref import WeakValueDictionary

from fastapi import Depends
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engines.errors import Conflict, InvalidRequest, NotFound, QuotaExceeded
from server.deps import part
from server.files.files import ALL_PURPOSES, Content, FileObject, Files, Purpose, read_pieces
from server.files.table import FILES
from server.http.body import MIB
from server.http.errors import BodyTooLarge
from server.store.access import SERVER, Access
from server.store.database import Database
from server.store.ids import new_id
from server.uploads.table import UPLOADS
from server.uploads.upload import Upload

if TYPE_CHECKING:
    from hashlib import _Hash

SECONDS = 3600
"""After which an upload that is not completed has expired, as OpenAI's has."""
KEPT_SECONDS = 2 * SECONDS
"""After which nothing is known of an upload any more."""
MAX_UPLOADS = 10_000
"""Of one owner, of which something is known."""
PART: Purpose = "upload_part"
"""The purpose of a row that is a part."""
MAX_PARTS = 10_000
"""Of one upload."""


class Uploads:
    """`access` and `purposes` say which uploads a caller may use: another is not found."""

    def __init__(self, database: Database, files: Files, *, max_bytes: int) -> None:
        """`max_bytes` is the size of the largest file that is made of parts."""
        self._database = database
        self._files = files
        self._max_bytes = max_bytes
        self._ending: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def check_open(self) -> None:
        """Raises Conflict where this server keeps no files."""
        self._database.check_open()

    async def create(self, upload: Upload) -> None:
        """Raises BodyTooLarge, QuotaExceeded, StorageFull."""
        self._check_size(upload.bytes)
        await self._files.check_quota(upload.owner, upload.bytes)  # before a byte is sent
        await self._files.check_room(2 * upload.bytes)  # the parts, and the file that they are joined to
        async with self._database.writing() as connection:
            await connection.execute(delete(UPLOADS).where(UPLOADS.c.created_at <= int(time.time()) - KEPT_SECONDS))
            query = select(func.count()).where(UPLOADS.c.owner == upload.owner)
            if (await connection.execute(query)).scalar_one() >= MAX_UPLOADS:
                raise QuotaExceeded(
                    f"There are {MAX_UPLOADS} uploads of yours from the last two hours: try again later."
                )
            await connection.execute(insert(UPLOADS).values(**asdict(upload)))

    async def get(self, id: str, access: Access, purposes: Collection[Purpose] = ALL_PURPOSES) -> Upload:
        """Raises NotFound."""
        query = select(UPLOADS).where(UPLOADS.c.id == id, access.rows(UPLOADS), UPLOADS.c.purpose.in_(purposes))
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise NotFound(f"No such Upload object: {id[:100]}", param="upload_id")
        return Upload(**{name: value for name, value in row.items() if name != "number"})

    # ---- parts

    @contextlib.asynccontextmanager
    async def storing_part(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[Content]:
        """The pieces are stored for the block, which is to `keep_part` them. Where it raises, they are gone."""
        async with self._files.storing(pieces, prefix="part_") as content:
            yield content

    async def keep_part(self, upload: Upload, content: Content) -> FileObject:
        """Raises Conflict where the upload has ended meanwhile, BodyTooLarge, QuotaExceeded."""
        made = content.as_file(PART, "", owner=upload.owner, expires_after=None, upload_id=upload.id)
        made = replace(made, expires_at=upload.expires_at)
        async with self._files.within_quota(made), self._database.writing() as connection:
            await self._check_pending(connection, upload)
            query = select(func.count(), func.coalesce(func.sum(FILES.c.bytes), 0))
            count, total = (await connection.execute(query.where(FILES.c.upload_id == upload.id))).one()
            if count >= MAX_PARTS:
                raise InvalidRequest(f"The upload has {MAX_PARTS} parts, as many as may be.", param="upload_id")
            self._check_size(total + made.bytes, of="The parts of this upload together", param="data")
            await self._files.add(connection, made)
        return made

    def _check_size(self, size: int, *, of: str = "The file", param: str = "bytes") -> None:
        if size > self._max_bytes:
            raise BodyTooLarge(
                f"{of} would be larger than {self._max_bytes / MIB:.5g} MiB (max_upload_size).", param=param
            )

    # ---- the end

    async def complete(
        self, id: str, access: Access, purposes: Collection[Purpose], part_ids: Sequence[str], md5: str | None
    ) -> tuple[Upload, FileObject]:
        """One file of the parts, in this order. Asked again, it is the same file: an answer may have been lost.

        Raises NotFound, Conflict, StorageFull, and InvalidRequest where the parts are not what the upload was made for.
        """
        async with self._alone(id):
            upload = await self.get(id, access, purposes)
            if upload.was_completed_with(part_ids):
                return upload, await self._made_of(upload, access)
            upload.check_pending()
            parts = _chosen(await self._files.parts_of(id), part_ids)
            if (total := sum(each.bytes for each in parts)) != upload.bytes:
                raise InvalidRequest(
                    f"The parts have {total} bytes together, and the upload was made for {upload.bytes}.",
                    param="part_ids",
                )
            digest = hashlib.md5(usedforsecurity=False)
            async with self._files.storing(self._joined(parts, digest)) as content:
                if md5 is not None and md5.lower() != digest.hexdigest():
                    raise InvalidRequest(f"The parts have the md5 {digest.hexdigest()}, not {md5}.", param="md5")
                file = content.as_file(
                    upload.purpose, upload.filename, owner=upload.owner, expires_after=upload.file_expires_after
                )
                completed = replace(upload, status="completed", file_id=file.id, part_ids=json.dumps(part_ids))
                await self._end(completed, file)
        return completed, file

    async def cancel(self, id: str, access: Access, purposes: Collection[Purpose]) -> Upload:
        """Raises NotFound, and Conflict where it has ended otherwise."""
        async with self._alone(id):
            upload = await self.get(id, access, purposes)
            if upload.status == "cancelled":
                return upload
            upload.check_pending()
            cancelled = replace(upload, status="cancelled")
            await self._end(cancelled)
        return cancelled

    async def _end(self, ended: Upload, file: FileObject | None = None) -> None:
        """The parts are gone, and the file is there: both, or neither."""
        async with self._database.freeing() as connection:
            await self._check_pending(connection, ended)
            changes = {"status": ended.status, "file_id": ended.file_id, "part_ids": ended.part_ids}
            await connection.execute(update(UPLOADS).where(UPLOADS.c.id == ended.id).values(**changes))
            gone = await self._files.drop_parts(connection, ended.id)
            if file is not None:
                await self._files.add(connection, file)
        await self._files.delete_contents(gone)

    async def _check_pending(self, connection: AsyncConnection, upload: Upload) -> None:
        """Raises Conflict where it is no longer, as this transaction sees it."""
        query = select(UPLOADS.c.status).where(UPLOADS.c.id == upload.id).with_for_update()
        status: Any = (await connection.execute(query)).scalar_one()
        replace(upload, status=status).check_pending()

    async def _made_of(self, upload: Upload, access: Access) -> FileObject:
        assert upload.file_id is not None, "completed"
        try:
            return await self._files.get(upload.file_id, access)
        except NotFound:
            raise Conflict(f"The upload {upload.id} is completed, and its file has been deleted.") from None

    async def _joined(self, parts: Sequence[FileObject], digest: "_Hash") -> AsyncIterator[bytes]:
        for each in parts:
            try:
                _, content = await self._files.read(each.id, SERVER, (PART,))
            except NotFound:
                raise Conflict(f"The upload {each.upload_id} has expired meanwhile.") from None
            with content:
                async for piece in read_pieces(content):
                    await asyncio.to_thread(digest.update, piece)
                    yield piece

    @contextlib.asynccontextmanager
    async def _alone(self, id: str) -> AsyncIterator[None]:
        """One at a time ends an upload: whoever asks again waits for what comes of the first."""
        async with self._ending.setdefault(id, asyncio.Lock()):
            yield


def new_upload(*, owner: str | None, purpose: Any, filename: str, size: int, file_expires_after: int | None) -> Upload:
    """One that begins now."""
    now = int(time.time())
    return Upload(
        id=new_id("upload_"),
        owner=owner,
        status="pending",
        purpose=purpose,
        filename=filename,
        bytes=size,
        file_expires_after=file_expires_after,
        created_at=now,
        expires_at=now + SECONDS,
    )


def _chosen(there: dict[str, FileObject], ids: Sequence[str]) -> list[FileObject]:
    """Raises InvalidRequest where one of them is not there, or named twice."""
    for place, id in enumerate(ids):
        if id not in there:
            raise InvalidRequest(f"The upload has no part {id[:100]!r}.", param=f"part_ids[{place}]")
    if len(set(ids)) < len(ids):
        raise InvalidRequest("A part is named twice.", param="part_ids")
    return [there[id] for id in ids]


UploadsDep = Annotated[Uploads, Depends(part(Uploads))]
