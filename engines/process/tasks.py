"""Background tasks that outlive what goes wrong in them, and the pauses between tries of anything."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the next try: the first after a failure, then doubled up to the longest."""
STEADY = 60.0
"""Seconds after which a try counts as a good one, and the next pause is a short one again."""


class Pauses:
    """The pauses between tries of one thing."""

    def __init__(self) -> None:
        self.failures = 0
        """Tries in a row that did not last."""

    def after(self, lasted: float) -> float:
        """A try has failed after so many seconds. Return those until the next."""
        self.failures = 1 if lasted > STEADY else self.failures + 1
        return min(FIRST_PAUSE * 2.0 ** min(self.failures - 1, 10), LONGEST_PAUSE)


async def keep_running(
    name: str, work: Callable[[], Awaitable[object]], *, on_failure: Callable[[str], None] = lambda name: None
) -> None:
    """Return when `work` does. Where it raises, that is logged, `on_failure` is told the name, and after a pause the
    work begins again. Only who cancels the task ends it sooner.
    """
    pauses = Pauses()
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
        pause = pauses.after(time.monotonic() - began)
        log.info("the task %r begins again in %g s", name, pause)
        _tell(on_failure, name)
        await asyncio.sleep(pause)


def _tell(on_failure: Callable[[str], None], name: str) -> None:
    """What counts failures must not add one."""
    try:
        on_failure(name)
    except Exception:
        log.exception("the failure of the task %r could not be counted", name)
