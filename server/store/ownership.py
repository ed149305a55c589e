"""One server at a time owns a database: it runs the jobs and batches that the database says are to be run.

A file beside a SQLite database is locked as long as the process lives. In Postgres a session holds an advisory lock;
it can be lost with its connection: then the owner takes it again, unless another was faster. So the owner also writes a
token of its own, and every transaction that writes looks whether it is still there: a server that has been replaced can
change nothing any more.
"""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from sqlalchemy import delete, insert, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from engines.errors import Conflict
from server.store.ids import new_id
from server.store.tables import OWNERS

TAKEN = "another server uses the database of this one, and each needs one of its own"
ADVISORY_LOCK = 0x74756E6573657276  # "tuneserv"
PATIENCE_SECONDS = 3.0
"""Seconds for Postgres to notice that the server before this one has died."""
PAUSE_SECONDS = 0.1


class Ownership(Protocol):
    async def take(self) -> None:
        """Raises Conflict where another server has it."""

    async def check(self, connection: AsyncConnection) -> None:
        """Comes first in a transaction that writes. Raises Conflict where another server has taken over."""

    async def release(self) -> None: ...


class FileOwnership:
    """Ownership of a SQLite database."""

    def __init__(self, file: Path) -> None:
        self._lock = FileLock(file, thread_local=False)

    async def take(self) -> None:
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise Conflict(TAKEN) from None

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
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not await self._try_lock(self._session):
            if time.monotonic() > deadline:
                await self.release()
                raise Conflict(TAKEN)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _try_lock(self, session: AsyncConnection) -> bool:
        found = await session.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        return bool(found.scalar_one())

    async def sign(self, connection: AsyncConnection) -> None:
        """Shut out the owner before this one. Its transactions that are under way end first."""
        await connection.execute(delete(OWNERS).where(OWNERS.c.name == "server"))
        await connection.execute(insert(OWNERS).values(name="server", token=self._token))

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
