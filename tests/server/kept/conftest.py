"""What is kept, without HTTP: in an empty database, on SQLite and on Postgres."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from server.kept.kept import Kept
from server.kept.shelf import Limits
from server.store.database import Database
from server.store.reserve import DiskReserve


class WatchedKept(Kept):
    """Tells how many answers its writer has lost."""

    registry: CollectorRegistry

    def lost(self) -> float | None:
        return self.registry.get_sample_value("tuneserve:kept_answers_lost_total")


Open = Callable[..., contextlib.AbstractAsyncContextManager[WatchedKept]]


@pytest.fixture
def open_kept(database_url: str, tmp_path: Path) -> Open:
    """Opens the database with these limits, and has what waits written."""

    @contextlib.asynccontextmanager
    async def open(
        *, number: int = 100, bytes: int = 1 << 20, seconds: int = 3600, spare: int = 0
    ) -> AsyncIterator[WatchedKept]:
        database, registry = Database(tmp_path, database_url), CollectorRegistry()
        await database.open()
        limits = Limits(number=number, bytes=bytes, seconds=seconds)
        kept = WatchedKept(
            database, DiskReserve(tmp_path, spare), limits, registry, prefix="tuneserve:", keep_completions=True
        )
        kept.registry = registry
        writing = asyncio.create_task(kept.writer.run())
        try:
            yield kept
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await kept.writer.close()
            await database.close()

    return open
