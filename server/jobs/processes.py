"""Processes of jobs that may have outlived the server that started them, or their own worker.

Each carries a mark in its environment, which all that it starts inherit, whatever process group they make. A worker
whose environment cannot be read is known by its number and the time at which it started.
"""

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import suppress

import psutil

log = logging.getLogger(__name__)

MARK = "TUNESERVE_JOB"
PATIENCE_SECONDS = 10.0
"""Seconds after which a process that cannot be killed is given up."""
PAUSE_SECONDS = 0.02
SAME_SECONDS = 0.5
"""Start times that differ by fewer seconds are of one process."""


def kill_marked(mark: str, known: Collection[tuple[int, float]] = ()) -> int:
    """Kill every process whose mark is `mark` or begins with `mark/`, and those of `known` (number, start) and theirs.

    Returns how many there were, once they are gone: what they wrote is complete.
    """
    killed = 0
    deadline = time.monotonic() + PATIENCE_SECONDS
    while found := list(_find(mark, known)):  # one may have forked while we looked
        for process in found:
            with suppress(psutil.Error):
                process.kill()
                killed += 1
        psutil.wait_procs(found, timeout=1)
        if time.monotonic() > deadline:
            log.error("Processes of jobs could not be killed: %s", [process.pid for process in found])
            break
        time.sleep(PAUSE_SECONDS)
    return killed


def start_time(pid: int) -> float:
    """Raises psutil.NoSuchProcess."""
    return psutil.Process(pid).create_time()


def _find(mark: str, known: Collection[tuple[int, float]]) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and (_is_marked(process, mark) or _is_known(process, known)):
                yield process


def _is_marked(process: psutil.Process, mark: str) -> bool:
    with suppress(psutil.AccessDenied):
        found = process.environ().get(MARK, "")
        return found == mark or found.startswith(f"{mark}/")
    return False


def _is_known(process: psutil.Process, known: Collection[tuple[int, float]]) -> bool:
    return any(pid == process.pid and abs(process.create_time() - started) < SAME_SECONDS for pid, started in known)
