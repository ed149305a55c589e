"""Long work on the event loop that lets others have their turns."""

import asyncio
import time

SECONDS = 0.005
"""Length of a turn."""


class Turns:
    def __init__(self) -> None:
        self._began = time.perf_counter()

    async def give(self) -> None:
        """Let everything else that is ready run, where a turn's time is over. Await it after each piece of work:
        an await of something that is there already lets nobody else run."""
        if time.perf_counter() - self._began > SECONDS:
            await asyncio.sleep(0)
            self._began = time.perf_counter()
