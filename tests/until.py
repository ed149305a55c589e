"""Waiting for what is to happen soon, however busy the machine is."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE = 120
"""Seconds after which something has not happened."""
PAUSE = 0.01
"""Seconds between two looks at first."""
LONGEST_PAUSE = 0.25
SHARE = 0.05
"""A pause, of the time that was waited: what is awaited for long, such as a training, needs the processor itself."""

Found = TypeVar("Found")


def until(
    condition: Callable[[], Found], *, seconds: float = PATIENCE, told: Callable[[], object] = lambda: ""
) -> Found:
    """What `condition` gives once that is true. `told` tells more where it never is, such as a log."""
    began = time.monotonic()
    while not (found := condition()):
        waited = time.monotonic() - began
        assert waited < seconds, f"{_late(condition, seconds)}\n{told()}"
        time.sleep(_pause(waited))
    return found


async def async_until(condition: Callable[[], Found], *, seconds: float = PATIENCE) -> Found:
    """The same, while other tasks run."""
    began = time.monotonic()
    while not (found := condition()):
        waited = time.monotonic() - began
        assert waited < seconds, _late(condition, seconds)
        await asyncio.sleep(_pause(waited))
    return found


def _pause(waited: float) -> float:
    return min(max(PAUSE, SHARE * waited), LONGEST_PAUSE)


def _late(condition: Callable[[], object], seconds: float) -> str:
    written = (
        inspect.getsource(condition).strip()
        if inspect.isfunction(condition) or inspect.ismethod(condition)
        else repr(condition)
    )
    return f"not so after {seconds:g} s: {written}"
