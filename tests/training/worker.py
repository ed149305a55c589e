"""A worker forked from a process that has imported what trainings need: what `python -m training.run` does, begun in
milliseconds."""

import asyncio
import importlib
import multiprocessing
import os
import sys
from pathlib import Path

import torch

import training.pipelines.train  # noqa: F401  (with all that it imports)
from server.jobs.executor import Order
from server.jobs.worker_process import client_environment
from tests.forks import FORKS, preload
from training.folder import JobFolder

preload(__name__, "training.validate")


class Worker:
    """Used as a Popen is."""

    def __init__(self, job: JobFolder, *, fault: str = "", **environment: str) -> None:
        """`fault`: the module of `tests.training.faults` that it imports first. Its output goes to worker.log."""
        self._process = FORKS.Process(target=_work, args=(job.path, fault, os.environ | environment))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still running after {timeout} s"
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


class ForkedExecutor:
    """Runs the jobs of a server by such workers, which nobody kills."""

    async def start(self, order: Order) -> "ForkedWorker":
        return ForkedWorker(order)


class ForkedWorker:
    out_of_memory = False
    started = 0.0

    def __init__(self, order: Order) -> None:
        environment = dict(client_environment(online=order.online))
        self._process = FORKS.Process(target=_work, args=(order.folder, "", environment, f"training.{order.program}"))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def terminate(self) -> None:
        self._process.terminate()

    async def kill(self) -> None:
        self._process.kill()

    async def wait(self) -> int:
        await asyncio.to_thread(self._process.join)
        assert self._process.exitcode is not None
        return self._process.exitcode


def _work(job: Path, fault: str, environment: dict[str, str], program: str = "training.run") -> None:
    with (job / "worker.log").open("wb") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # its own processes are none of the tests'
    torch.set_num_threads(1)
    if fault:
        importlib.import_module(f"tests.training.faults.{fault}")
    os.chdir(job)
    sys.exit(importlib.import_module(program).main(JobFolder(job)))
