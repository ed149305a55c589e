"""From listening to gone: the engine starts behind a listening server, and requests drain before it stops."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from engines.engine import Engine
from engines.errors import EngineUnavailable, TuneserveError
from engines.types import EngineState
from server.http.in_flight import InFlight

logger = logging.getLogger(__name__)

ERROR_DELIVERY_SECONDS = 5.0
"""Seconds for clients to receive the error of requests that were ended."""

WHY_UNAVAILABLE = {
    EngineState.STARTING: "The model is still loading.",
    EngineState.RESTARTING: "The engine is restarting.",
    EngineState.SLEEPING: "The engine sleeps.",
    EngineState.STOPPED: "The engine has stopped.",
    EngineState.FAILED: "The engine has failed.",
}


class Lifecycle:
    """Whether requests are taken, and whether the engine came up."""

    def __init__(self, engine: Engine, load_adapters: Callable[[], Awaitable[None]]) -> None:
        """`load_adapters` is called once the engine has started, before the first request is taken."""
        self.in_flight = InFlight()
        self.start_failed = asyncio.Event()
        self._engine = engine
        self._load_adapters = load_adapters
        self._started = False
        self._draining = False

    async def start_engine(self) -> None:
        """Start the engine with its adapters, unless the start of the server has failed already. A failure is logged
        and told by `start_failed`: nobody awaits a start in the background."""
        if self.start_failed.is_set():
            return
        began = time.monotonic()
        try:
            await self._engine.start()
            await self._load_adapters()
        except Exception as error:  # noqa: BLE001 (whatever it is, the log says it)
            self.fail(error)
        else:
            self._started = True
            logger.info("The engine was ready after %.1f s.", time.monotonic() - began)

    @property
    def has_started(self) -> bool:
        """Whether the model is on this machine: the engine has loaded it once."""
        return self._started

    def fail(self, error: Exception) -> None:
        """The server cannot start, and ends."""
        expected = isinstance(error, TuneserveError)  # its message is all there is to know
        logger.error("The server cannot start: %s", error, exc_info=not expected)
        self.start_failed.set()

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
