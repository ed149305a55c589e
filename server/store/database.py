"""The database: SQLite in `state_dir` unless `database_url` names another. Opened with the server, closed with it."""

import asyncio
import contextlib
import importlib.util
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import event, insert, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from engines.adapters.state_folder import WAY_OUT, private_folder
from engines.errors import Conflict, InvalidRequest, StorageFull, StoreUnavailable, TuneserveError
from server.store.address import read_address, sqlite_address
from server.store.ids import new_id
from server.store.migrate import migrate
from server.store.ownership import FileOwnership, Ownership, SessionOwnership
from server.store.spare import Spare
from server.store.tables import OWNERS

log = logging.getLogger(__name__)

BUSY_SECONDS = 10
"""Seconds that a transaction waits for its turn, and then for what another program does with the database."""
SYNCHRONOUS = "FULL"
"""SQLite's pragma: what is committed outlives a loss of power."""
CONNECT_SECONDS = 10
COMMAND_SECONDS = 60
"""Seconds for Postgres to answer, after which it counts as lost."""
KEEP_ALIVE = {"tcp_keepalives_idle": "15", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}
"""Settings by which Postgres notices within half a minute that the machine of a server is gone."""
SQLITE_AWAY = tuple(
    f"SQLITE_{name}"
    for name in ("BUSY", "LOCKED", "IOERR", "CANTOPEN", "READONLY", "CORRUPT", "NOTADB", "PROTOCOL", "NOMEM", "PERM")
)
"""Beginnings of the names of errors that are no mistake of ours."""
POSTGRES_AWAY = ("08", "25006", "53", "55", "57", "58", "XX")
"""Beginnings of such errors' SQLSTATE: connection, read-only, resources, locks, operators, system, internal."""

POSTGRES_NUL = "22021"
"""SQLSTATE where a text has a NUL, of which SQLite makes nothing."""


class UnusableDatabase(TuneserveError):
    """The database that the parameters name cannot be used: the server must not start without it."""

    code = "unusable_database"


class Database:
    """Transactions on the tables of `tables.METADATA`.

    Where it is not open, because the server was told to keep nothing, every transaction raises Conflict with the
    reason.
    """

    def __init__(self, state_dir: Path | None, url: str | None = None) -> None:
        """`state_dir` None: nothing is kept. Raises InvalidRequest for a `url` that the store cannot use."""
        self._state = state_dir
        self._url = None if url is None else read_address(url)
        self._engine: AsyncEngine | None = None
        self._ownership: Ownership | None = None
        self._spare: Spare | None = None
        self._why_closed = "it has not been opened"
        self.id = ""
        """Tells it from every other database, once it is open: what belongs to its rows lies under this name."""
        self._turn = asyncio.Lock()  # SQLite takes one writer at a time, and lets the others poll

    async def open(self) -> None:
        """Take the database and bring its tables up to date. Raises UnusableDatabase, NewerDatabase."""
        if self._state is None:
            self._why_closed = "it was started with --without_state"
            return
        try:
            await self._open(self._state)
            self._why_closed = ""
        except Conflict as error:
            raise UnusableDatabase(f"another server uses {self._place}: stop it, or {WAY_OUT}") from error
        except OSError as error:
            if self._url is not None:
                raise _unusable(error) from error
            raise UnusableDatabase(f"{self._place} cannot be used ({error.strerror}): {WAY_OUT}") from error
        except TuneserveError:
            raise
        except Exception as error:  # each driver has classes of its own
            raise _unusable(error) from error
        finally:
            if self._why_closed:
                await self.close()

    @property
    def _place(self) -> str:
        if self._url is not None:
            return f"the database {self._url.render_as_string()}"  # without its password
        return f"the state_dir {self._state}"

    async def _open(self, state: Path) -> None:
        url = self._url or sqlite_address(private_folder(state / "store") / "tuneserve.sqlite3")
        self._engine = _engine(url)
        if url.get_backend_name() == "sqlite":
            file = Path(url.database or "")
            self._ownership = FileOwnership(file)
            self._spare = Spare(file.with_suffix(".spare"))
        else:
            self._ownership = SessionOwnership(self._engine)
        await self._ownership.take()
        async with self._room_of_spare(), self._engine.execution_options(write=True).begin() as connection:
            await connection.run_sync(migrate)
            await self._ownership.sign(connection)
            self.id = await _id(connection)

    async def close(self) -> None:
        """Let another server use it. Comes last."""
        self._why_closed = self._why_closed or "this server is shutting down"
        if self._ownership is not None:
            await self._ownership.release()
        if self._engine is not None:
            await self._engine.dispose()
        self._engine = self._ownership = None

    @property
    def is_open(self) -> bool:
        return not self._why_closed

    def check_open(self) -> None:
        """Raises Conflict where it is not."""
        if self._why_closed:
            raise Conflict(f"This server keeps no files and runs no jobs: {self._why_closed}.")

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that changes nothing: all its statements see the same state, in SQLite.

        Raises Conflict where the database is not open, StoreUnavailable.
        """
        self.check_open()
        with _our_errors():
            async with self._begin(write=False) as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is committed as the block ends, and rolled back where it raises.

        What is read to be changed needs `.with_for_update()`: Postgres lets others write meanwhile; SQLite never does.
        Raises Conflict where the database is not open or another server has taken it over, StoreUnavailable,
        StorageFull.
        """
        self.check_open()
        assert self._ownership is not None, "open"
        with _our_errors():
            async with self._turn_to_write(), self._begin(write=True) as connection:
                await self._ownership.check(connection)
                yield connection

    @contextlib.asynccontextmanager
    async def freeing(self) -> AsyncIterator[AsyncConnection]:
        """As `writing`, for a change that makes room on the disk: it is made where the disk is full, too."""
        self.check_open()
        async with self._room_of_spare(), self.writing() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _room_of_spare(self) -> AsyncIterator[None]:
        if self._spare is None:
            yield
            return
        await asyncio.to_thread(self._spare.give_up_if_full)
        yield
        await asyncio.to_thread(self._spare.restore)

    @contextlib.asynccontextmanager
    async def _turn_to_write(self) -> AsyncIterator[None]:
        assert self._engine is not None, "open"
        if self._engine.dialect.name != "sqlite":
            yield
            return
        try:
            async with asyncio.timeout(BUSY_SECONDS):  # not wait_for, which can swallow a cancellation
                await self._turn.acquire()
        except TimeoutError:
            raise StoreUnavailable("The server's database is too busy.") from None
        try:
            yield
        finally:
            self._turn.release()

    @contextlib.asynccontextmanager
    async def _begin(self, *, write: bool) -> AsyncIterator[AsyncConnection]:
        assert self._engine is not None and self._ownership is not None, "open"
        self._ownership.check_place()
        connection = self._engine.execution_options(write=write).connect()
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(connection)
            except Exception as error:  # each driver has classes of its own
                log.warning("The database cannot be reached: %s: %s", type(error).__name__, error)
                raise StoreUnavailable("The server cannot reach its database.") from error
            await stack.enter_async_context(connection.begin())
            yield connection


async def _id(connection: AsyncConnection) -> str:
    found = await connection.execute(select(OWNERS.c.token).where(OWNERS.c.name == "database"))
    if (id := found.scalar_one_or_none()) is None:
        id = new_id("")
        await connection.execute(insert(OWNERS).values(name="database", token=id))
    return id


def _unusable(error: Exception) -> UnusableDatabase:
    return UnusableDatabase(f"the database cannot be used: {type(error).__name__}: {error}")


def _engine(url: URL) -> AsyncEngine:
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(url, pool_timeout=BUSY_SECONDS, connect_args={"timeout": BUSY_SECONDS})
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    if importlib.util.find_spec("asyncpg") is None:
        raise UnusableDatabase("a Postgres database needs asyncpg: pip install 'tuneserve[postgres]'")
    settings = {**KEEP_ALIVE, "lock_timeout": f"{BUSY_SECONDS}s"}
    return create_async_engine(
        url,
        pool_pre_ping=True,
        pool_timeout=BUSY_SECONDS,
        connect_args={"timeout": CONNECT_SECONDS, "command_timeout": COMMAND_SECONDS, "server_settings": settings},
    )


def _set_up_sqlite(connection: Any, record: Any) -> None:
    """Transactions begin where we say."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", f"synchronous={SYNCHRONOUS}", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    """A transaction that will write says so at once: one that finds out later fails where another wrote meanwhile."""
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextlib.contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if (ours := _to_ours(error)) is None:
            raise
        log.warning("The database failed: %s", error.orig)
        raise ours from error
    except TimeoutError as error:  # asyncpg's, which SQLAlchemy lets pass
        log.warning("The database did not answer within %g s.", COMMAND_SECONDS)
        raise StoreUnavailable("The server's database does not answer.") from error


def _to_ours(error: DBAPIError) -> TuneserveError | None:
    """What the state of the machine, or of the database, or a client's text is to blame for; None for a mistake of our
    own."""
    name, state = getattr(error.orig, "sqlite_errorname", ""), getattr(error.orig, "sqlstate", None) or ""
    if name == "SQLITE_FULL" or state == "53100" or "No space left" in str(error.orig):
        return StorageFull("There is no room left on the server's disk.")
    if state == POSTGRES_NUL:
        return InvalidRequest("A name has a NUL character in it, which the server's database keeps in no text.")
    if name.startswith(SQLITE_AWAY) or state.startswith(POSTGRES_AWAY) or error.connection_invalidated:
        return StoreUnavailable("The server cannot use its database now.")
    return None
