"""Exponential back-off, and background tasks that are kept running with it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the next try: after one failure, and at most; each further failure doubles them."""
STEADY = 60.0
"""Seconds that a try must last for the pause after it to be the first one again."""


class Backoff:
    """The growing pauses between tries of one thing."""

    def __init__(self) -> None:
        self.failures = 0
        """Failures in a row of tries that did not last."""

    def after(self, lasted: float) -> float:
        """Count the failure of a try that lasted so many seconds. Return the seconds until the next."""
        self.failures = 1 if lasted > STEADY else self.failures + 1
        return min(FIRST_PAUSE * 2.0 ** min(self.failures - 1, 10), LONGEST_PAUSE)


async def keep_running(
    name: str, work: Callable[[], Awaitable[object]], *, on_failure: Callable[[str], None] = lambda name: None
) -> None:
    """Run `work` until it returns. Where it raises, log that, call `on_failure` with the name, and begin again after a
    pause. Only a cancellation of this task ends it sooner.
    """
    backoff = Backoff()
    while True:
        began = time.monotonic()
        try:
            await work()
            return
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            log.error("what the task %r awaited was cancelled", name)
        except Exception:  # of any kind: it must not end what is to run as long as the server
            log.exception("the task %r failed", name)
        pause = backoff.after(time.monotonic() - began)
        log.info("the task %r begins again in %g s", name, pause)
        _tell(on_failure, name)
        await asyncio.sleep(pause)


def _tell(on_failure: Callable[[str], None], name: str) -> None:
    """An error of `on_failure` must not end the task."""
    try:
        on_failure(name)
    except Exception:  # of any kind, see above
        log.exception("the failure of the task %r could not be counted", name)
