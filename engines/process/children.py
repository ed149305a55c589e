"""Child processes: killed when we end, however that happens, and ended with all that they started.

A child that outlived us would be watched by nobody, and hold what it holds.
"""

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

PR_SET_PDEATHSIG = 1


def with_parent_death_signal(command: Sequence[str]) -> list[str]:
    """The same program, which the system kills when its parent ends, wherever it can promise that."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else [*command]


def set_parent_death_signal() -> None:
    """Have this process killed when its parent ends. Linux only; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def set_parent_death_signal_of_forks() -> None:
    """Have every process that this one forks killed when this one ends. Linux only; elsewhere nothing happens."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl  # found beforehand: a fork had better not wait for a lock
        os.register_at_fork(after_in_child=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL))


def group_exists(leader: int) -> bool:
    """Whether there is anything of a process's group."""
    try:
        os.killpg(leader, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill_group(leader: int) -> None:
    """Kill what there is of a process's group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
