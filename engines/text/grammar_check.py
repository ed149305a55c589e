"""Checks a constraint in a process of its own, which can be ended where the check goes on and on.

What takes the compiler long cannot be told from the look of it: a few short patterns that must all match are enough to
keep it busy for hours, and nothing within a process can stop it.
"""

import os
import subprocess
import sys
import threading
from functools import lru_cache

from engines.errors import QueueFull

CPU_SECONDS = 3
WALL_SECONDS = 15
"""On a machine so busy that the processor's seconds take this long, the check is given up too."""
MEMORY = 1 << 30

_one_at_a_time = threading.Lock()


@lru_cache(maxsize=256)
def problem_within_limits(grammar: str) -> str | None:
    """Say why llguidance cannot run a grammar, None where it can. Takes a tenth of a second where nothing is wrong.

    Raises QueueFull while the machine is busy with others.
    """
    if not _one_at_a_time.acquire(timeout=WALL_SECONDS):
        raise QueueFull("Too many constraints are being checked; try again")
    try:
        child = subprocess.run(
            [sys.executable, "-m", __spec__.name],
            input=grammar.encode(),
            capture_output=True,
            check=False,
            timeout=WALL_SECONDS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    except subprocess.TimeoutExpired:
        raise QueueFull("The machine is too busy to check the constraint; try again") from None
    finally:
        _one_at_a_time.release()
    return (child.stdout.decode() or None) if child.returncode == 0 else "it is too complex"


def _limit_resources() -> None:
    try:
        import resource
    except ModuleNotFoundError:  # not on Windows; the time limit of the parent holds there
        return
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    _limit_resources()
    from engines.text.grammar import problem_of

    sys.stdout.write(problem_of(sys.stdin.buffer.read().decode()) or "")
