"""Writes that no answer waits for: they wait in memory, and several become one transaction."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter
from sqlalchemy.ext.asyncio import AsyncConnection

from engines.errors import StoreUnavailable, TuneserveError
from server.store.database import Database

log = logging.getLogger(__name__)

MOST_WAITING = 512
"""Writes that may wait. One more, and the oldest is lost: the database has been away for long, or is too slow."""
TOGETHER = 32
"""Writes of one transaction."""
RETRY_SECONDS = 1.0
SETTLE_SECONDS = 5.0
"""Seconds that a look at what is kept waits for what was given to be kept before."""
CLOSE_SECONDS = 10.0

Write = Callable[[AsyncConnection], Awaitable[None]]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    about: str
    prepare: Callable[[], Write]
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """It has been written, or is lost."""


class Writer:
    """What cannot be written is lost, which the log and a metric tell; a database that is away is waited for."""

    def __init__(self, database: Database, registry: CollectorRegistry, *, prefix: str) -> None:
        self._database = database
        self._waiting: deque[_Waiting] = deque()
        self._news = asyncio.Event()
        self._lost = Counter(
            f"{prefix}kept_answers_lost", "Answers that were to be kept and could not be.", registry=registry
        )

    def add(self, about: str, prepare: Callable[[], Write]) -> None:
        """Have it written soon. `about` names it in the log; `prepare` is called in a thread, and gives what is done in
        the transaction."""
        if len(self._waiting) >= MOST_WAITING:
            self._lose(self._waiting[0], StoreUnavailable("too much waits to be written."))
        self._waiting.append(_Waiting(about, prepare))
        self._news.set()

    def check_room(self) -> None:
        """Raises StoreUnavailable where one more would make another one lost."""
        if len(self._waiting) >= MOST_WAITING:
            raise StoreUnavailable("The server cannot keep answers now: too many wait for its database.")

    async def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Wait until all that has been added up to now is written or lost, but not for ever."""
        if self._waiting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._waiting[-1].over.wait()

    async def run(self) -> None:
        """Write what waits, until cancelled."""
        while True:
            await self._write_all()
            await self._news.wait()
            self._news.clear()

    async def close(self) -> None:
        """Write what waits before the server ends, once nothing is added any more and `run` has been cancelled."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._write_all()
        while self._waiting:
            self._lose(self._waiting[0], StoreUnavailable("the server ends."))

    async def _write_all(self) -> None:
        while self._waiting:
            await self._write(list(self._waiting)[:TOGETHER])

    async def _write(self, together: Sequence[_Waiting]) -> None:
        """What one of them raises is no fault of the others: each is then tried by itself."""
        try:
            writes = await asyncio.to_thread(lambda: [each.prepare() for each in together])
            async with self._database.writing() as connection:
                for write in writes:
                    await write(connection)
        except StoreUnavailable as error:
            log.warning("%d answers wait to be kept: %s", len(self._waiting), error)
            await asyncio.sleep(RETRY_SECONDS)
        except Exception as error:  # noqa: BLE001 (whatever it is, the next are written)
            if len(together) == 1:
                self._lose(together[0], error)
                return
            for each in together:
                await self._write([each])
        else:
            for each in together:
                self._end(each)

    def _lose(self, each: _Waiting, why: Exception) -> None:
        trace = None if isinstance(why, TuneserveError) else why
        log.error("%s is not kept: %s", each.about, why, exc_info=trace)
        self._lost.inc()
        self._end(each)

    def _end(self, each: _Waiting) -> None:
        with contextlib.suppress(ValueError):  # it was lost meanwhile
            self._waiting.remove(each)
        each.over.set()
