"""Keep an engine's process alive: start it, watch it, start it again after its end, with growing pauses."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from engines.errors import EngineUnavailable, TuneserveError, UnsupportedModel
from engines.process.backoff import Backoff, keep_running
from engines.process.life import End
from engines.types import EngineState, Health

log = logging.getLogger(__name__)

TASK = "engine supervision"


class Supervisor:
    """Owns the engine's state.

    `start` begins one life of the engine and returns, once it can answer, an awaitable for its end. `on_death` is told
    the reason of each: it ends the requests that were running.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[Awaitable[End]]],
        on_death: Callable[[str], None],
        *,
        max_restarts: int,
    ) -> None:
        self._start = start
        self._on_death = on_death
        self._max_restarts = max_restarts
        self._watcher: asyncio.Task[None] | None = None
        self._life: Awaitable[End] | None = None
        self._born = 0.0
        self._backoff = Backoff()
        self._last = End("internal", "")
        self._health = Health(EngineState.STOPPED)
        self.restarts: Counter[str] = Counter()
        """Reason of an end -> how often a life was begun after such a one."""
        self.task_failures: Counter[str] = Counter()

    @property
    def health(self) -> Health:
        """FAILED also where the supervision has ended."""
        if self._watcher is not None and self._watcher.done() and self._health.state is not EngineState.FAILED:
            return Health(EngineState.FAILED, "nothing watches the engine any more")
        return self._health

    async def start(self) -> None:
        """Return once the engine can answer. Raises what the first start raises; later ones are tried again."""
        self._health = Health(EngineState.STARTING)
        try:
            life = await self._start()
        except Exception as error:
            if self._health.state is not EngineState.STOPPED:
                self._health = Health(EngineState.FAILED, str(error))
            raise
        if self._health.state is EngineState.STOPPED:
            raise EngineUnavailable("the engine was stopped while it started")
        self._live(life)
        self._watcher = asyncio.create_task(keep_running(TASK, self._watch, on_failure=self._fail), name=TASK)

    async def stop(self) -> None:
        """Stop watching, so that the end of the engine does not count as a death."""
        watcher, self._watcher = self._watcher, None
        self._health = Health(EngineState.STOPPED)
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    def _fail(self, name: str) -> None:
        """The supervision has failed: the life that it watched counts as ended, and another one begins."""
        self.task_failures[name] += 1
        self._life = None
        self._last = End("internal", "was lost out of sight")
        self._health = Health(EngineState.RESTARTING, f"its process {self._last.detail}")
        self._on_death(self._health.detail)

    async def _watch(self) -> None:
        """Return where the engine has failed for good."""
        while self._health.state is not EngineState.FAILED:
            if self._life is None:
                await self._start_again()
            else:
                await self._see_it_end(self._life)

    async def _see_it_end(self, life: Awaitable[End]) -> None:
        end = await life
        self._life = None
        self._last = end
        self._health = Health(EngineState.RESTARTING, f"its process {end.detail}")
        log.error("the engine died: its process %s", end.detail)
        self._on_death(self._health.detail)

    async def _start_again(self) -> None:
        pause = self._backoff.after(time.monotonic() - self._born)
        if self._backoff.failures > self._max_restarts:
            return self._give_up(f"it failed {self._backoff.failures} times in a row, at last so: {self._last.detail}")
        log.info("the engine is started again in %g s", pause)
        await asyncio.sleep(pause)
        self.restarts[self._last.reason] += 1
        try:
            self._live(await self._start())
        except UnsupportedModel as error:  # the model's files have changed under us: no restart mends that
            self._give_up(error.message)
        except Exception as error:  # of any kind: another try may do
            self._born = time.monotonic()  # nothing has lasted
            self._last = End("start_failed", str(error))
            self._health = Health(EngineState.RESTARTING, str(error))
            log.error("the engine did not start: %s", error, exc_info=not isinstance(error, TuneserveError))
        else:
            log.info("the engine is ready again")

    def _live(self, life: Awaitable[End]) -> None:
        self._life = life
        self._born = time.monotonic()
        self._health = Health(EngineState.READY)

    def _give_up(self, why: str) -> None:
        self._health = Health(EngineState.FAILED, why)
        log.error("the engine cannot be started again: %s", why)
