"""Memory of workers: how much one may take, who goes first where the machine has none left, and whether one went so."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

FIRST = 1000
"""The highest `oom_score_adj`: what has it is ended before the server and its engine, whose memory requests need."""
OWN_CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
MACHINE = Path("/proc/vmstat")


def confine(pid: int, most: int | None) -> None:
    """Have the process `pid`, and those that it starts, end before us where memory runs out, and take at most `most`
    bytes for itself: more is an error in it (RLIMIT_DATA). Linux only; elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    with suppress(OSError):  # it has ended already
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(FIRST))
    if most is not None:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))


def count_oom_kills() -> int | None:
    """Processes that the system has ended for want of memory: those of our cgroup where it counts them, or all of the
    machine. None where neither is told."""
    with suppress(OSError):
        for line in OWN_CGROUP.read_text().splitlines():
            hierarchy, _, path = line.partition("::")
            if hierarchy == "0" and (found := _count(CGROUPS / path.lstrip("/") / "memory.events")) is not None:
                return found
    return _count(MACHINE)


def _count(file: Path) -> int | None:
    with suppress(OSError):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None
