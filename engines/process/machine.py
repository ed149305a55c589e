"""What of the machine this process may use: cores and memory, within the limits of its container.

A cgroup's limits hold for all that is below it, so each is looked for from the process's own cgroup up to the root.
Containers see neither their own path nor what is above it: what is not there has no limit.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path("/")
NO_LIMIT = 1 << 60
"""Bytes from which on a cgroup of version 1 means that there is no limit."""


def usable_cores(root: Path = ROOT, allowed: set[int] | None = None) -> int:
    """Physical cores among the CPUs that this process may run on, `allowed`, and no more than its quota of CPU time
    pays for: a thread for which there is no time holds up those that wait for it.
    """
    allowed = os.sched_getaffinity(0) if allowed is None else allowed
    topology = root / "sys/devices/system/cpu"
    cores = {_read(topology / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed}
    quota = min((seconds for folder in _cgroups(root, "cpu") for seconds in _cpu_quota(folder)), default=len(cores))
    return max(1, min(len(cores), int(quota)))


def available_memory(root: Path = ROOT) -> int:
    """Bytes that can be taken without swapping."""
    left = (bytes for folder in _cgroups(root, "memory") for bytes in _memory_left(folder))
    return max(0, min(psutil.virtual_memory().available, *left, NO_LIMIT))


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of those above it, in both versions of cgroups."""
    mounts = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top = mounts
        elif controller in controllers.split(","):
            top = next((mounts / name for name in (controllers, controller) if (mounts / name).is_dir()), mounts)
        else:
            continue
        own = Path(path.lstrip("/"))
        yield from (top / each for each in (own, *own.parents))


def _cpu_quota(folder: Path) -> Iterator[float]:
    """Seconds of CPU time in a second."""
    quota, _, period = (_read(folder / "cpu.max") or "").partition(" ")
    quota = quota or _read(folder / "cpu.cfs_quota_us") or "max"
    period = period or _read(folder / "cpu.cfs_period_us") or "100000"
    if quota not in ("max", "-1"):
        yield int(quota) / int(period)


def _memory_left(folder: Path) -> Iterator[int]:
    """Bytes below the limit. Those in use include files that the kernel keeps only while nobody needs the room."""
    most = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes") or "max"
    used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes") or "0"
    if most != "max" and int(most) < NO_LIMIT:
        lines = (line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
        stat = {name: int(value) for name, value in lines}
        yield int(most) - int(used) + stat.get("total_inactive_file", stat.get("inactive_file", 0))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:  # there is none, or it is not for us
        return None
