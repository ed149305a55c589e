"""Which GPUs this machine has, and how much memory is free on each: asked of `nvidia-smi`, never of torch."""

import asyncio
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

MIB = 1 << 20
PATIENCE_SECONDS = 20.0
"""Longest wait for nvidia-smi."""
QUERY = ("--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class Device:
    id: str
    """Its name in CUDA_VISIBLE_DEVICES."""
    free_bytes: int


class Devices(Protocol):
    async def look(self) -> Sequence[Device]:
        """The GPUs as they are now; none on a machine without."""


class NvidiaDevices:
    async def look(self) -> Sequence[Device]:
        program = shutil.which("nvidia-smi")
        if program is None:
            return ()
        process = await asyncio.create_subprocess_exec(
            program, *QUERY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
            return ()
        return parse(output.decode()) if process.returncode == 0 else ()


class FixedDevices:
    """Devices that a test names, or none."""

    def __init__(self, *devices: Device) -> None:
        self.devices = devices

    async def look(self) -> Sequence[Device]:
        return self.devices


def parse(text: str) -> list[Device]:
    """nvidia-smi's answer.

    A GPU that does not tell its memory, as some do that share it with the CPU, counts as free.
    """
    devices = []
    for line in filter(None, map(str.strip, text.splitlines())):
        id, _, free = (part.strip() for part in line.partition(","))
        devices.append(Device(id, int(free) * MIB if free.isdecimal() else 1 << 62))
    return devices


def choose(devices: Sequence[Device], count: int, *, taken: Collection[str], needed_bytes: int) -> list[Device] | None:
    """`count` GPUs that no job has `taken`, those with the most free memory; None where there are not so many now."""
    free = [device for device in devices if device.id not in taken and device.free_bytes >= needed_bytes]
    if len(free) < count:
        return None
    return sorted(free, key=lambda device: -device.free_bytes)[:count]
