"""One server at a time owns a database: it runs the jobs and batches that the database says are to be run.

A file beside a SQLite database is locked as long as the process lives. In Postgres a session holds an advisory lock;
it can be lost with its connection: then the owner takes it again, unless another was faster. So the owner also writes a
token of its own, and every transaction that writes looks whether it is still there: a server that has been replaced can
change nothing any more.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from sqlalchemy import delete, insert, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from engines.errors import Conflict, StoreUnavailable
from server.store.ids import new_id
from server.store.tables import OWNERS

log = logging.getLogger(__name__)

TAKEN = "another server uses the database of this one, and each needs one of its own"
ADVISORY_LOCK = 0x74756E6573657276  # "tuneserv"
PATIENCE_SECONDS = 5.0
"""Seconds for a server that is ending to release the database, and for Postgres to notice that one has died."""
PAUSE_SECONDS = 0.1
GONE = "The file of the server's database was removed or replaced: put it back, or start the server again."


class Ownership(Protocol):
    async def take(self) -> None:
        """Raises Conflict where another server has it, and keeps it for longer than one that is ending would."""

    async def sign(self, connection: AsyncConnection) -> None:
        """Comes once, when it is taken and the tables are there."""

    def check_place(self) -> None:
        """Comes before every transaction. Raises StoreUnavailable where the database is not where it was."""

    async def check(self, connection: AsyncConnection) -> None:
        """Comes first in a transaction that writes. Raises Conflict where another server has taken over."""

    async def release(self) -> None: ...


async def _wait_for(try_it: Callable[[], Awaitable[bool]]) -> None:
    deadline, told = time.monotonic() + PATIENCE_SECONDS, False
    while not await try_it():
        if time.monotonic() > deadline:
            raise Conflict(TAKEN)
        if not told:
            log.info("Another server uses the database; it has %g s to end.", PATIENCE_SECONDS)
            told = True
        await asyncio.sleep(PAUSE_SECONDS)


class FileOwnership:
    """Ownership of a SQLite database: of its file, wherever that is moved."""

    def __init__(self, file: Path) -> None:
        """`file`: the database's. The lock is one beside it."""
        self._file = file
        self._lock = FileLock(file.with_suffix(".lock"), thread_local=False)
        self._identity: tuple[int, int] | None = None

    async def take(self) -> None:
        await _wait_for(self._try_lock)

    async def _try_lock(self) -> bool:
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        return True

    async def sign(self, connection: AsyncConnection) -> None:
        self._identity = self._identify()

    def check_place(self) -> None:
        """What is written to a file that has lost its name is lost, and SQLite says nothing."""
        if self._identity is not None and self._identify() != self._identity:
            raise StoreUnavailable(GONE)

    def _identify(self) -> tuple[int, int] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    async def check(self, connection: AsyncConnection) -> None:
        """The lock lives as long as the process."""

    async def release(self) -> None:
        self._lock.release()


class SessionOwnership:
    """Ownership of a Postgres database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._session: AsyncConnection | None = None
        self._taking = asyncio.Lock()
        self._token = new_id("")

    async def take(self) -> None:
        self._session = await self._engine.connect()
        try:
            await _wait_for(self._try_lock)
        except Conflict:
            await self.release()
            raise

    async def _try_lock(self) -> bool:
        assert self._session is not None, "connected"
        found = await self._session.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        return bool(found.scalar_one())

    async def sign(self, connection: AsyncConnection) -> None:
        """Shut out the owner before this one. Its transactions that are under way end first."""
        await connection.execute(delete(OWNERS).where(OWNERS.c.name == "server"))
        await connection.execute(insert(OWNERS).values(name="server", token=self._token))

    def check_place(self) -> None:
        """Nothing to check: a Postgres database does not move under its connection."""

    async def check(self, connection: AsyncConnection) -> None:
        row = select(OWNERS.c.token).where(OWNERS.c.name == "server").with_for_update(read=True)
        if (await connection.execute(row)).scalar_one_or_none() != self._token:
            raise Conflict(TAKEN)
        async with self._taking:
            if await self._is_lost():
                await self.release()
                await self.take()

    async def _is_lost(self) -> bool:
        """The connection has ended, and the lock with it."""
        assert self._session is not None, "taken"
        try:
            raw = await self._session.get_raw_connection()
        except SQLAlchemyError:
            return True
        return bool(raw.driver_connection is None or raw.driver_connection.is_closed())

    async def release(self) -> None:
        if self._session is not None:
            with contextlib.suppress(Exception):  # where the session is lost, so is the lock
                await self._session.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
            with contextlib.suppress(Exception):
                await self._session.close()
            self._session = None
