"""Files of the API: a row in the database and a content in the storage, which never disagree.

A content is stored before its row is written, and deleted after its row: a content without a row is a leftover, which
the next start removes.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import Depends
from sqlalchemy import ColumnElement, RowMapping, and_, delete, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from engines.errors import NotFound, QuotaExceeded, TuneserveError
from server.deps import part
from server.files.storage import FileStorage, LocalStorage, Stored
from server.files.table import FILES
from server.pools import Pool
from server.store.access import Access
from server.store.database import Database
from server.store.ids import new_id
from server.store.pages import Order, read_page
from server.store.reserve import DiskReserve

log = logging.getLogger(__name__)

UploadPurpose = Literal["fine-tune", "batch", "evals"]
Purpose = Literal["fine-tune", "fine-tune-results", "evals", "batch", "batch_output", "upload_part"]
ALL_PURPOSES: tuple[Purpose, ...] = ("fine-tune", "fine-tune-results", "evals", "batch", "batch_output")
"""Those of files that a client may see, which a part of an upload is not."""
GIB = 1 << 30
READ_BYTES = 1 << 20
"""Bytes of a content that are in memory at a time."""
EXPIRY_SECONDS = 60.0
"""Seconds between two looks for expired files, to delete them. An expired file is not found in any case."""


@dataclass(frozen=True, slots=True)
class FileObject:
    id: str
    purpose: Purpose
    filename: str
    bytes: int
    sha256: str
    created_at: int
    owner: str | None
    """Name of the key that made it; None: nobody's."""
    expires_at: int | None = None
    upload_id: str | None = None
    """Of a part: the upload that it belongs to."""

    def to_wire(self) -> dict[str, Any]:
        """As OpenAI has it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            **({} if self.expires_at is None else {"expires_at": self.expires_at}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one owner may have."""

    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Content:
    """What is stored, but no file yet."""

    id: str
    stored: Stored

    def as_file(
        self,
        purpose: Purpose,
        filename: str,
        *,
        owner: str | None,
        expires_after: int | None,
        upload_id: str | None = None,
    ) -> FileObject:
        now = int(time.time())
        return FileObject(
            id=self.id,
            purpose=purpose,
            filename=filename,
            bytes=self.stored.bytes,
            sha256=self.stored.sha256,
            created_at=now,
            owner=owner,
            expires_at=None if expires_after is None else now + expires_after,
            upload_id=upload_id,
        )


class Files:
    """`purposes` are those that a caller may see, and `access` says whose files: another file is not found."""

    def __init__(
        self, database: Database, folder: Path, reserve: DiskReserve, pool: Pool, *, max_bytes: int, quota: Quota
    ) -> None:
        """`folder` holds the files of all databases; `pool` has the threads that wait for the disk; `max_bytes` is the
        size of the largest file that a client may upload; `quota` is what each owner may have."""
        self.max_bytes = max_bytes
        self._reserve = reserve
        self._quota = quota
        self._counting = asyncio.Lock()
        self._database = database
        self._folder = folder
        self._pool = pool
        self._storage: FileStorage | None = None

    async def open(self) -> None:
        """Remove what a server that was killed has left. Called once, when the database is open."""
        storage = await asyncio.to_thread(LocalStorage, self._folder / self._database.id, self._reserve, self._pool)
        async with self._database.reading() as connection:
            ids = (await connection.execute(select(FILES.c.id))).scalars()
            await storage.keep_only(set(ids))
        self._storage = storage

    def check_open(self) -> None:
        """Raises Conflict where this server keeps no files."""
        self._database.check_open()

    async def check_quota(self, owner: str | None, more: int = 0) -> None:
        """Raises QuotaExceeded where the owner may not have one more file, of `more` bytes."""
        query = select(func.count(), func.coalesce(func.sum(FILES.c.bytes), 0)).where(FILES.c.owner == owner)
        async with self._database.reading() as connection:
            count, total = (await connection.execute(query)).one()
        if count >= self._quota.files:
            raise QuotaExceeded(f"There are {count} files of yours, as many as may be (max_files): delete some.")
        if total + more > self._quota.bytes:
            raise QuotaExceeded(
                f"Your files have {total / GIB:.3g} GiB, and with this one they would have more than "
                f"{self._quota.bytes / GIB:.3g} (max_files_size): delete some."
            )

    async def check_room(self, more: int) -> None:
        """Raises StorageFull where the disk has no room for so many bytes."""
        await self._pool.run(self._reserve.check, more)

    # ---- making

    async def create(
        self,
        purpose: Purpose,
        filename: str,
        content: Path | bytes | AsyncIterator[bytes],
        *,
        owner: str | None,
        expires_after: int | None = None,
    ) -> FileObject:
        """A new file, of which `content` is read to its end.

        Raises StorageFull, Conflict, and what `content` raises.
        """
        async with self.storing(content) as stored:
            file = stored.as_file(purpose, filename, owner=owner, expires_after=expires_after)
            await self.keep(file)
        return file

    @contextlib.asynccontextmanager
    async def storing(
        self, content: Path | bytes | AsyncIterator[bytes], *, prefix: str = "file-"
    ) -> AsyncIterator["Content"]:
        """The content is stored for the block, which is to `keep` or `add` a file of it, with an id that begins so.

        Where the block raises, it is gone.
        """
        storage = self._open_storage()
        id = new_id(prefix)
        stored = await storage.store(id, _pieces(content))
        try:
            yield Content(id, stored)
        except BaseException:
            await self._delete_content_without_row(id)
            raise

    async def _delete_content_without_row(self, id: str) -> None:
        """A transaction that was broken off may have been committed all the same."""
        with contextlib.suppress(TuneserveError):  # without a database, the next start looks
            async with self._database.reading() as connection:
                rows = (await connection.execute(select(FILES.c.id).where(FILES.c.id == id))).all()
            if not rows:
                await self._open_storage().delete(id)

    async def keep_within_quota(self, file: FileObject) -> None:
        """The file is there from now on, unless its owner may not have it. Raises QuotaExceeded."""
        async with self.within_quota(file):
            await self.keep(file)

    @contextlib.asynccontextmanager
    async def within_quota(self, file: FileObject) -> AsyncIterator[None]:
        """For a block that keeps or adds the file. Raises QuotaExceeded where its owner may not have it."""
        async with self._counting:
            await self.check_quota(file.owner, file.bytes)
            yield

    async def keep(self, file: FileObject) -> None:
        """The file is there from now on."""
        async with self._database.writing() as connection:
            await self.add(connection, file)

    async def add(self, connection: AsyncConnection, file: FileObject) -> None:
        """The file is there as soon as the transaction of `connection` is committed."""
        await connection.execute(insert(FILES).values(**asdict(file)))

    # ---- finding

    async def get(self, id: str, access: Access, purposes: Collection[Purpose] = ALL_PURPOSES) -> FileObject:
        """Raises NotFound."""
        async with self._database.reading() as connection:
            found = await connection.execute(select(FILES).where(FILES.c.id == id, _visible(access, purposes)))
            row = found.mappings().one_or_none()
        if row is None:
            raise _no_such(id)
        return _to_file(row)

    async def list(
        self,
        access: Access,
        purposes: Collection[str] = ALL_PURPOSES,
        *,
        after: str | None = None,
        limit: int = 10_000,
        order: Order = "desc",
    ) -> tuple[list[FileObject], bool]:
        """One page, and whether more follow. Raises NotFound where there is no file `after`."""
        query, within = select(FILES).where(_visible(access, purposes)), access.rows(FILES)
        async with self._database.reading() as connection:
            rows, more = await read_page(connection, FILES, query, within=within, after=after, limit=limit, order=order)
        return [_to_file(row) for row in rows], more

    async def read(
        self, id: str, access: Access, purposes: Collection[Purpose] = ALL_PURPOSES
    ) -> tuple[FileObject, BinaryIO]:
        """The file with its content, to be closed, which stays readable where the file is deleted. Raises NotFound."""
        file = await self.get(id, access, purposes)
        try:
            return file, await self._open_storage().open(id)
        except FileNotFoundError:
            raise _no_such(id) from None

    async def parts_of(self, upload_id: str) -> dict[str, FileObject]:
        """By their ids."""
        async with self._database.reading() as connection:
            found = await connection.execute(select(FILES).where(FILES.c.upload_id == upload_id))
            return {row["id"]: _to_file(row) for row in found.mappings()}

    async def copy_to(self, id: str, access: Access, target: Path) -> FileObject:
        """Have the content at `target`, a new file, for as long as it is needed there. Raises NotFound, StorageFull."""
        file = await self.get(id, access)
        try:
            await self._open_storage().copy_to(id, target)
        except FileNotFoundError:
            raise _no_such(id) from None
        return file

    # ---- deleting

    async def delete(self, id: str, access: Access, purposes: Collection[Purpose] = ALL_PURPOSES) -> None:
        """Raises NotFound."""
        if not await self._delete(FILES.c.id == id, _visible(access, purposes)):
            raise _no_such(id)

    async def delete_expired(self) -> None:
        await self._delete(FILES.c.expires_at <= int(time.time()))

    async def delete_expired_for_ever(self) -> None:
        while True:
            try:
                await self.delete_expired()
            except (TuneserveError, OSError) as error:
                log.warning("Expired files could not be deleted: %s", error)
            await asyncio.sleep(EXPIRY_SECONDS)

    async def _delete(self, *which: ColumnElement[bool]) -> Iterable[str]:
        async with self._database.freeing() as connection:
            ids = (await connection.execute(delete(FILES).where(*which).returning(FILES.c.id))).scalars().all()
        await self.delete_contents(ids)
        return ids

    async def drop_parts(self, connection: AsyncConnection, upload_id: str) -> Iterable[str]:
        """The parts are gone once the transaction of `connection` is committed: have these contents deleted then."""
        gone = await connection.execute(delete(FILES).where(FILES.c.upload_id == upload_id).returning(FILES.c.id))
        return gone.scalars().all()

    async def delete_contents(self, ids: Iterable[str]) -> None:
        """Of rows that are gone."""
        for id in ids:
            await self._open_storage().delete(id)

    def _open_storage(self) -> FileStorage:
        self._database.check_open()
        assert self._storage is not None, "opened after the database"
        return self._storage


def _visible(access: Access, purposes: Collection[str]) -> ColumnElement[bool]:
    kept = or_(FILES.c.expires_at.is_(None), FILES.c.expires_at > int(time.time()))
    return and_(access.rows(FILES), FILES.c.purpose.in_(purposes), kept)


FilesDep = Annotated[Files, Depends(part(Files))]


def _no_such(id: str) -> NotFound:
    return NotFound(f"No such File object: {id[:100]}", param="id")


def _to_file(row: RowMapping) -> FileObject:
    return FileObject(**{name: value for name, value in row.items() if name != "number"})


async def _pieces(content: Path | bytes | AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, Path):
        with await asyncio.to_thread(content.open, "rb") as file:
            async for piece in read_pieces(file):
                yield piece
    else:
        async for piece in content:
            yield piece


async def read_pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    """The rest of `file`, never much of it at a time."""
    while piece := await asyncio.to_thread(file.read, READ_BYTES):
        yield piece
