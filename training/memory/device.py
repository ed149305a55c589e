"""The device that a training here would get."""

import resource
from dataclasses import dataclass
from pathlib import Path

import psutil

from training.device import accelerated

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    available: int
    """Bytes that are free."""

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"


def this_device() -> Device:
    if accelerated():
        import torch

        kind = torch.accelerator.current_accelerator().type
        free, _ = torch.accelerator.get_memory_info()
        return Device(kind, free)
    return Device("cpu", min(psutil.virtual_memory().available, _left_in_container(), _allowed()))


def _left_in_container() -> int:
    try:
        return int(CGROUP_LIMIT.read_text()) - int(CGROUP_USED.read_text())
    except (OSError, ValueError):  # there is no limit, or no container
        return 1 << 62


def _allowed() -> int:
    """What this process may take for itself beside what it has taken: its libraries."""
    most, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return 1 << 62 if most == resource.RLIM_INFINITY else most - int(psutil.Process().memory_info().data)
