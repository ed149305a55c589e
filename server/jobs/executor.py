"""Runs the worker processes of jobs on this machine.

A worker leads a process group of its own; it dies with the server wherever the system can promise that, and takes no
module from the folder that it runs in.
"""

import asyncio
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from engines.process.children import with_parent_death_signal
from server.jobs.memory import confine, count_oom_kills
from server.jobs.processes import MARK, kill_marked, start_time
from server.jobs.worker_process import Program, client_environment, worker_command
from training.folder import LOG

NICENESS = 10
"""Niceness of a worker on the CPU, which the served model may be computed on as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    program: Program
    folder: Path
    mark: str
    """Tells the processes of this worker from all others."""
    online: bool = False
    """Whether it asks the hub."""
    devices: Sequence[str] = ()
    """GPUs, as CUDA_VISIBLE_DEVICES takes them; none: the CPU."""


class Worker(Protocol):
    pid: int
    started: float
    out_of_memory: bool
    """It has ended, and most likely so because the system ended it for want of memory."""

    def terminate(self) -> None:
        """Ask it to save a checkpoint and end."""

    async def kill(self) -> None:
        """End it at once, with everything that it has started."""

    async def wait(self) -> int:
        """Its exit status, once nothing of it is left; below 0, the signal that ended it."""


class Executor(Protocol):
    async def start(self, order: Order) -> Worker:
        """Raises OSError."""


class LocalExecutor:
    def __init__(self, *, memory: int | None = None, command: Sequence[str] | None = None) -> None:
        """`memory`: the most bytes that a process of a worker may take for itself. `command` takes the place of
        `python -m training.PROGRAM`, in tests."""
        self._memory = memory
        self._command = command

    async def start(self, order: Order) -> Worker:
        oom_kills = count_oom_kills()
        with (order.folder / LOG).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *_wrapped(self._program(order), on_cpu=not order.devices),
                cwd=order.folder,
                env=self._environment(order),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        confine(process.pid, self._memory)
        return LocalWorker(process, order.mark, oom_kills)

    def _program(self, order: Order) -> list[str]:
        if self._command is not None:
            return [*self._command, order.program, str(order.folder)]
        return worker_command(order.folder, program=order.program, processes=max(1, len(order.devices)))

    def _environment(self, order: Order) -> Mapping[str, str]:
        return {
            **client_environment(online=order.online),
            MARK: order.mark,
            "CUDA_VISIBLE_DEVICES": ",".join(order.devices),
        }


def _wrapped(program: Sequence[str], *, on_cpu: bool) -> list[str]:
    """Both wrappers become the program: its process is the one that we start."""
    nice = shutil.which("nice")
    politely = [nice, "-n", str(NICENESS)] if on_cpu and nice else []
    return [*politely, *with_parent_death_signal(program)]


class LocalWorker:
    def __init__(self, process: asyncio.subprocess.Process, mark: str, oom_kills: int | None) -> None:
        """`oom_kills`: how many there had been before it was started."""
        self._process = process
        self._mark = mark
        self._oom_kills = oom_kills
        self.out_of_memory = False
        self.pid = process.pid
        try:
            self.started = start_time(process.pid)
        except psutil.NoSuchProcess:  # it has ended already
            self.started = 0.0

    def terminate(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self.wait()

    async def wait(self) -> int:
        status = await self._process.wait()
        self.out_of_memory = status == -signal.SIGKILL and count_oom_kills() != self._oom_kills
        await asyncio.to_thread(kill_marked, self._mark)
        return status
