"""Keep an engine's process alive: start it, watch it, start it again after a death, with growing pauses."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from engines.errors import EngineUnavailable, TuneserveError, UnsupportedModel
from engines.types import EngineState, Health

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a restart: the first after a death, then doubled up to the longest."""
STEADY = 60.0
"""Seconds after which a life counts as a good one, and the next pause is a short one again."""


class Supervisor:
    """Owns the engine's state.

    `start` begins one life of the engine and returns, once it can answer, an awaitable for the reason of its end.
    `on_death` is told each reason: it ends the requests that were running.
    """

    def __init__(self, start: Callable[[], Awaitable[Awaitable[str]]], on_death: Callable[[str], None]) -> None:
        self._start = start
        self._on_death = on_death
        self._watcher: asyncio.Task[None] | None = None
        self.health = Health(EngineState.STOPPED)

    async def start(self) -> None:
        """Return once the engine can answer. Raises what the first start raises; later ones are tried again."""
        self.health = Health(EngineState.STARTING)
        try:
            end = await self._start()
        except TuneserveError as error:
            if self.health.state is not EngineState.STOPPED:
                self.health = Health(EngineState.FAILED, error.message)
            raise
        if self.health.state is EngineState.STOPPED:
            raise EngineUnavailable("the engine was stopped while it started")
        self.health = Health(EngineState.READY)
        self._watcher = asyncio.create_task(self._watch(end))

    async def stop(self) -> None:
        """Stop watching, so that the end of the engine is no death."""
        self.health = Health(EngineState.STOPPED)
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None

    async def _watch(self, end: Awaitable[str]) -> None:
        pause = FIRST_PAUSE
        while True:
            born = time.monotonic()
            reason = await end
            self.health = Health(EngineState.RESTARTING, reason)
            log.error("the engine died: %s", reason)
            self._on_death(reason)
            if time.monotonic() - born > STEADY:
                pause = FIRST_PAUSE
            while True:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                try:
                    end = await self._start()
                    break
                except UnsupportedModel as error:  # the model's files have changed under us: no restart mends that
                    self.health = Health(EngineState.FAILED, error.message)
                    log.error("the engine cannot be started again: %s", error.message)
                    return
                except TuneserveError as error:
                    self.health = Health(EngineState.RESTARTING, error.message)
                    log.error("the engine did not start: %s; trying again in %g s", error.message, pause)
            self.health = Health(EngineState.READY)
            log.info("the engine is ready again")
