"""Waiting for what is away for a while: the engine, the database, room on the disk."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from engines.errors import EngineUnavailable, StorageFull, StoreUnavailable, TuneserveError

log = logging.getLogger(__name__)

Value = TypeVar("Value")
PAUSE_SECONDS = 1.0
"""Seconds between two calls."""
AWAY: tuple[type[TuneserveError], ...] = (EngineUnavailable, StoreUnavailable, StorageFull)


async def patiently(work: Callable[[], Awaitable[Value]]) -> Value:
    """What `work` returns, called until nothing that it needs is away."""
    told = False
    while True:
        try:
            return await work()
        except AWAY as error:
            if not told:
                log.warning("A job has to wait: %s", error)
            told = True
            await asyncio.sleep(PAUSE_SECONDS)
