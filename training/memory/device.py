"""The device that a training here would get."""

import resource
from dataclasses import dataclass

import psutil

from engines.process.machine import available_memory
from training.device import accelerated


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
    return Device("cpu", min(available_memory(), _allowed()))


def _allowed() -> int:
    """What this process may take for itself beside what it has taken: its libraries."""
    most, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return 1 << 62 if most == resource.RLIM_INFINITY else most - int(psutil.Process().memory_info().data)
