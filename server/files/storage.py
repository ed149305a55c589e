"""Where the content of files lies. A content is there as a whole or not at all, whenever the machine stops."""

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Protocol

from engines.adapters.disk import sync
from engines.adapters.state_folder import private_folder
from engines.errors import StorageFull
from server.pools import Pool
from server.store.reserve import DiskReserve

WRITE_BYTES = 1 << 20
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Stored:
    bytes: int
    sha256: str


class FileStorage(Protocol):
    async def store(self, key: str, pieces: AsyncIterator[bytes]) -> Stored:
        """Keep the content. Where `pieces` raises, or this is cancelled, nothing is left. Raises StorageFull."""

    async def open(self, key: str) -> BinaryIO:
        """The content, from its beginning, even where it is deleted meanwhile. Raises FileNotFoundError."""

    async def copy_to(self, key: str, target: Path) -> None:
        """Have the content at `target` too, whatever happens to it here. Raises FileNotFoundError, StorageFull."""

    async def delete(self, key: str) -> None:
        """Nothing happens where there is none."""

    async def keep_only(self, keys: Collection[str]) -> None:
        """Remove what else there is: what a server that was killed has left. Nobody may store meanwhile."""


class LocalStorage:
    """Contents as files of one folder, which nobody else writes to."""

    def __init__(self, folder: Path, reserve: DiskReserve, pool: Pool) -> None:
        """`reserve` is the room on the disk that no content takes; `pool` has the threads that wait for the disk."""
        self._folder = private_folder(folder)
        self._reserve = reserve
        self._pool = pool

    async def store(self, key: str, pieces: AsyncIterator[bytes]) -> Stored:
        writer = _Writer(self._folder / key, self._reserve)
        try:
            waiting = bytearray()
            async for piece in pieces:
                waiting += piece
                if len(waiting) >= WRITE_BYTES:
                    await self._pool.run(writer.write, bytes(waiting))
                    waiting.clear()
            await self._pool.run(writer.write, bytes(waiting))
            return await self._pool.run(writer.finish)
        except BaseException:
            await asyncio.to_thread(writer.discard)  # whether the pool is full or not
            raise

    async def open(self, key: str) -> BinaryIO:
        return await self._pool.run((self._folder / key).open, "rb")

    async def copy_to(self, key: str, target: Path) -> None:
        await self._pool.run(_link_or_copy, self._folder / key, target, self._reserve)

    async def delete(self, key: str) -> None:
        await self._pool.run((self._folder / key).unlink, missing_ok=True)

    async def keep_only(self, keys: Collection[str]) -> None:
        await self._pool.run(self._keep_only, keys)

    def _keep_only(self, keys: Collection[str]) -> None:
        for path in self._folder.iterdir():
            if path.name not in keys:
                path.unlink()


class _Writer:
    """A file under another name until it is whole. A task that is cancelled leaves its last call running in a thread:
    calls wait for each other, and one that comes after `discard` does nothing."""

    def __init__(self, path: Path, reserve: DiskReserve) -> None:
        self._path = path
        self._reserve = reserve
        self._partial = path.with_name(f"{path.name}.partial")
        self._lock = threading.Lock()
        self._file: FileIO | None = None
        self._discarded = False
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes) -> None:
        with self._lock, told_full():
            self._reserve.check(len(data))
            file = self._open()
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            self._digest.update(data)
            self._bytes += len(data)

    def finish(self) -> Stored:
        with self._lock, told_full():
            file = self._open()
            os.fsync(file.fileno())
            file.close()
            self._partial.rename(self._path)
            sync(self._path.parent)
        return Stored(self._bytes, self._digest.hexdigest())

    def discard(self) -> None:
        with self._lock:
            self._discarded = True
            if self._file is not None:
                self._file.close()
                self._partial.unlink(missing_ok=True)
                self._path.unlink(missing_ok=True)

    def _open(self) -> FileIO:
        if self._discarded:
            raise asyncio.CancelledError
        if self._file is None:
            self._file = self._partial.open("xb", buffering=0)
        return self._file


def _link_or_copy(source: Path, target: Path, reserve: DiskReserve) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one that knows no links
        with told_full():
            reserve.check(source.stat().st_size)
            partial = target.with_name(f".{target.name}.partial")
            try:
                shutil.copyfile(source, partial)
                sync(partial)
                partial.rename(target)
            finally:
                partial.unlink(missing_ok=True)
    sync(target.parent)


@contextlib.contextmanager
def told_full() -> Iterator[None]:
    """What fails for want of room raises StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull("There is no room left for files on the server's disk.") from error
        raise
