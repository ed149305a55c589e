"""Watchdog of an engine's process: notices one that is alive, and does not answer, makes no step, or is stopped.

Time is counted in looks, not by the clock: a server that was itself stopped, or kept from running, does not blame the
engine for it.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import NoReturn

import psutil

from engines.process import frames

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Seconds between two looks at what was heard."""
PING_SECONDS = 3.0
"""Seconds of silence after which the process is asked for a heartbeat. `engine_watchdog_timeout` is at least 5 s:
longer than this and a look."""
STATE_SECONDS = 4.0
"""Seconds between two looks at the state of all its processes."""
FAMILY_LOOKS = 15
"""Looks until these processes are listed again, for which all processes of the machine are read."""


class Stuck(Exception):
    """The process is alive, and does not go on."""


class Watchdog:
    """Raises `Stuck` after `seconds` without a message, or without a step while there is work.

    Any message is a heartbeat. A ping asks for one.
    """

    def __init__(self, seconds: float, *, has_work: Callable[[], bool], ping: Callable[[], None]) -> None:
        self._seconds = seconds
        self._has_work = has_work
        self._ping = ping
        self._silent = 0.0
        self._without_step = 0.0
        self._steps = 0

    def hear(self, step: frames.Step) -> None:
        self._silent = 0.0
        told = step.outputs or step.pooled or step.failures or step.adapters or step.rests
        if told or step.stats.steps != self._steps:
            self._steps = step.stats.steps
            self._without_step = 0.0

    async def run(self) -> NoReturn:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        self._silent += LOOK_SECONDS
        self._without_step = self._without_step + LOOK_SECONDS if self._has_work() else 0.0
        if self._silent >= self._seconds:
            raise Stuck(f"has not answered for {self._seconds:g} s")
        if self._without_step >= self._seconds:
            raise Stuck(f"has made no step for {self._seconds:g} s, with work to do")
        if self._silent >= PING_SECONDS:
            self._ping()


async def watch_for_stopped(leader: int) -> NoReturn:
    """Raise `Stuck` where a process of a family is stopped (as by SIGSTOP) at two looks, one after the other."""
    family: list[psutil.Process] = []
    before: set[int] = set()
    for look in itertools.count():
        await asyncio.sleep(STATE_SECONDS)
        if not family or look % FAMILY_LOOKS == 0:
            family = await asyncio.to_thread(_family, leader)
        stopped = {process.pid for process in family if _is_stopped(process)}
        if both := before & stopped:
            raise Stuck(f"is stopped: {', '.join(f'process {pid}' for pid in sorted(both))}")
        before = stopped
    raise AssertionError("it counts for ever")


def _family(leader: int) -> list[psutil.Process]:
    """The process and what there is below it; empty where that cannot be seen now."""
    try:
        return [psutil.Process(leader), *psutil.Process(leader).children(recursive=True)]
    except (psutil.Error, OSError) as error:  # it has just ended, or no more files can be opened
        log.debug("the engine's processes cannot be listed: %s", error)
        return []


def _is_stopped(process: psutil.Process) -> bool:
    """Whether it is stopped by a signal. A process that a debugger holds does not count."""
    try:
        return process.is_running() and process.status() == psutil.STATUS_STOPPED
    except (psutil.Error, OSError):
        return False
