"""The order of changes: those of one name come one after another, those of different names do not wait for each
other."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class Changes:
    def __init__(self) -> None:
        self.running: set[asyncio.Task[Any]] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # name -> its lock

    def begin(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do `work` while nobody else changes what `name` stands for."""

        async def alone() -> T:
            lock = self._locks.setdefault(name, asyncio.Lock())
            async with lock:
                return await work

        task = asyncio.create_task(alone())
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return task

    async def run(self, name: str, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` as `begin` does, and return its result. Once begun it goes on, even if its caller is cancelled."""
        return await asyncio.shield(self.begin(name, work))

    async def finish(self) -> None:
        """Return once every change that has begun has ended."""
        await asyncio.gather(*self.running, return_exceptions=True)
