"""Load of others beside a measurement: busy loops, one for each core that this process may use, in turns with quiet."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TURNS = 3
SECONDS = 2.0
"""Of each turn."""


def shares(step: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a step by itself, and beside the loops: medians over the turns of what a step took in each."""
    step()
    quiet, beside = [], []
    with _loops() as loops:
        for _ in range(TURNS):
            quiet.append(_mean_seconds(step))
            _tell(loops, signal.SIGCONT)
            beside.append(_mean_seconds(step))
            _tell(loops, signal.SIGSTOP)
    return statistics.median(quiet), statistics.median(beside)


def _mean_seconds(step: Callable[[], object]) -> float:
    """Not the median of the steps: what they take altogether is what the machine's scheduler deals out."""
    began = time.perf_counter()
    steps = 0
    while time.perf_counter() - began < SECONDS:
        step()
        steps += 1
    return (time.perf_counter() - began) / steps


@contextmanager
def _loops() -> "Iterator[list[subprocess.Popen[bytes]]]":
    """Stopped, at first."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        _tell(loops, signal.SIGSTOP)
        yield loops
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _tell(loops: "list[subprocess.Popen[bytes]]", what: signal.Signals) -> None:
    for loop in loops:
        loop.send_signal(what)
