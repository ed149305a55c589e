"""A worker forked from a process that has imported what trainings need: what `python -m training.run` does, begun in
milliseconds."""

import importlib
import multiprocessing
import os
import sys
from pathlib import Path

import torch

import training.pipelines.train  # noqa: F401  (with all that it imports)
from tests.forks import FORKS, preload
from training.folder import JobFolder

preload(__name__)


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


def _work(job: Path, fault: str, environment: dict[str, str]) -> None:
    with (job / "worker.log").open("wb") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # its own processes are none of the tests'
    torch.set_num_threads(1)
    if fault:
        importlib.import_module(f"tests.training.faults.{fault}")
    sys.exit(importlib.import_module("training.run").main(JobFolder(job)))
