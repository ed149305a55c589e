"""Waiting for what is to happen soon, however busy the machine is."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE = 120
"""Seconds after which something has not happened."""
PAUSE = 0.01
"""Seconds between two looks."""

Found = TypeVar("Found")


def until(
    condition: Callable[[], Found], *, seconds: float = PATIENCE, told: Callable[[], object] = lambda: ""
) -> Found:
    """What `condition` gives once that is true. `told` tells more where it never is, such as a log."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{_late(condition, seconds)}\n{told()}"
        time.sleep(PAUSE)
    return found


async def async_until(condition: Callable[[], Found], *, seconds: float = PATIENCE) -> Found:
    """The same, while other tasks run."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, _late(condition, seconds)
        await asyncio.sleep(PAUSE)
    return found


def _late(condition: Callable[[], object], seconds: float) -> str:
    written = (
        inspect.getsource(condition).strip()
        if inspect.isfunction(condition) or inspect.ismethod(condition)
        else repr(condition)
    )
    return f"not so after {seconds:g} s: {written}"
