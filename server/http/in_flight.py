"""How many requests run now."""

import asyncio


class InFlight:
    def __init__(self) -> None:
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """A request has begun."""
        self.count += 1
        self._idle.clear()

    def leave(self) -> None:
        """It has been answered, or its client has gone."""
        self.count -= 1
        if not self.count:
            self._idle.set()

    async def wait_until_idle(self, timeout: float) -> bool:
        """Whether none runs any more, `timeout` seconds from now at the latest."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True
