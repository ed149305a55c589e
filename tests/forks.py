"""Processes that begin in milliseconds: each is forked from one that has imported what it needs."""

import multiprocessing
import os
import sys
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
_imported: list[str] = []


def preload(*modules: str) -> None:
    """Have the process that is forked import these too. There is one for all tests, so that who needs other modules
    must leave these alone; called while tests are collected, before the first fork."""
    _imported.extend(module for module in modules if module not in _imported)
    FORKS.set_forkserver_preload(_imported)


preload(__name__)


class Fork:
    """A program that runs in such a process; used as a Popen with a pipe for its stderr is."""

    def __init__(self, program: str, given: Any, folder: str, environment: dict[str, str]) -> None:
        """`program`: the module whose `main`, given `given`, returns the exit status. It runs in this folder."""
        log, its_log = FORKS.Pipe(duplex=False)
        self._process = FORKS.Process(target=_run, args=(program, given, its_log, folder, environment), daemon=True)
        self._process.start()
        its_log.close()
        self.stderr = os.fdopen(os.dup(log.fileno()))
        log.close()
        self.pid = self._process.pid

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still running after {timeout} s"
        return self._process.exitcode


def _run(program: str, given: Any, log: Connection, folder: str, environment: dict[str, str]) -> None:
    os.dup2(log.fileno(), sys.stderr.fileno())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(import_module(program).main(given))
