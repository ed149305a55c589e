"""The engine's life within the server: it starts behind a listening server, requests drain before it stops, and the
server ends where it fails for good."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from engines.engine import Engine
from engines.errors import EngineFailure, EngineUnavailable, TuneserveError
from engines.types import EngineState
from server.http.in_flight import InFlight

logger = logging.getLogger(__name__)

ERROR_DELIVERY_SECONDS = 5.0
"""Seconds for clients to receive the error of requests that were ended."""

LOOK_SECONDS = 0.5
"""Seconds between two looks at whether the engine has failed for good."""

WHY_UNAVAILABLE = {
    EngineState.STARTING: "The model is still loading.",
    EngineState.RESTARTING: "The engine is restarting.",
    EngineState.SLEEPING: "The engine sleeps.",
    EngineState.STOPPED: "The engine has stopped.",
    EngineState.FAILED: "The engine has failed.",
}


class Lifecycle:
    """Whether requests are taken, and whether the engine came up and still can."""

    def __init__(self, engine: Engine, load_adapters: Callable[[], Awaitable[None]]) -> None:
        """`load_adapters` is called once the engine has started, before the first request is taken."""
        self.in_flight = InFlight()
        self.failed = asyncio.Event()
        """Set where the server must end: it could not start, or its engine has failed for good."""
        self._engine = engine
        self._load_adapters = load_adapters
        self._started = False
        self._draining = False

    async def start_engine(self) -> None:
        """Start the engine with its adapters, unless the start of the server has failed already. A failure is logged
        and told by `failed`: nobody awaits a start in the background."""
        if self.failed.is_set():
            return
        try:
            await self.bring_up()
        except Exception as error:  # noqa: BLE001 (whatever it is, the log says it)
            self.fail(error)

    async def bring_up(self) -> None:
        """Start the engine with its adapters. Raises what that raises."""
        began = time.monotonic()
        await self._engine.start()
        await self._load_adapters()
        self._started = True
        logger.info("The engine was ready after %.1f s.", time.monotonic() - began)

    @property
    def has_started(self) -> bool:
        """Whether the model is on this machine: the engine has loaded it once."""
        return self._started

    @property
    def is_draining(self) -> bool:
        """Whether the server ends: what still runs is ended soon, whatever it is."""
        return self._draining

    async def watch_engine(self) -> None:
        """Return once the engine, which had started, has failed for good: no request can be answered ever again."""
        while not self._started or self._engine.health().state is not EngineState.FAILED:
            await asyncio.sleep(LOOK_SECONDS)
        self.fail(EngineFailure(self._engine.health().detail), "The engine has failed for good, and the server ends")

    def fail(self, error: Exception, what: str = "The server cannot start") -> None:
        """End the server."""
        expected = isinstance(error, TuneserveError)  # its message is all there is to know
        logger.error("%s: %s", what, error, exc_info=not expected)
        self.failed.set()

    def check_alive(self) -> None:
        """Raise EngineUnavailable where only a new server helps."""
        if self._engine.health().state is EngineState.FAILED:  # why is in the log
            raise EngineUnavailable("The engine has failed for good.", code="engine_failed")

    def check_ready(self) -> None:
        """Raise EngineUnavailable where requests cannot be answered now."""
        if self._draining:
            raise EngineUnavailable("The server is shutting down.")
        state = self._engine.health().state
        if state is not EngineState.READY:
            raise EngineUnavailable(WHY_UNAVAILABLE[state])
        if not self._started:
            raise EngineUnavailable("The adapters are still loading.")

    async def drain(self, timeout: float) -> None:
        """Take no more requests; return once none runs. Those that still run after `timeout` end with an error."""
        self._draining = True
        if not await self.in_flight.wait_until_idle(timeout):
            logger.warning("%d requests did not finish within %g s and are ended.", self.in_flight.count, timeout)
            await self._engine.stop()
            await self.in_flight.wait_until_idle(ERROR_DELIVERY_SECONDS)
