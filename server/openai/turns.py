"""Long work on the event loop that lets others have their turns."""

import asyncio
import time

SECONDS = 0.005
"""Length of a turn."""
PIECES = 16
"""Pieces of work between two looks at the clock: one that comes now and then, as a token does, is not worth a look."""


class Turns:
    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._pieces = 0

    @property
    def over(self) -> bool:
        """Whether a turn's time is over: to be asked after each piece of work."""
        self._pieces += 1
        return self._pieces % PIECES == 0 and time.perf_counter() - self._began > SECONDS

    async def give(self) -> None:
        """Let everything else that is ready run: an await of something that is there already lets nobody else."""
        await asyncio.sleep(0)
        self._began = time.perf_counter()
