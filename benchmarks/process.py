"""A server and everything it starts: run, watched, and ended without a trace."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import psutil

from benchmarks.environments import ROOT

WATCH_SECONDS = 0.5
NEAR = 0.97
"""PSS is read where RSS is at least this part of the highest so far. The system walks all pages of a process for it,
and maps no others for it meanwhile."""
MIB = 2**20
COMPILED_ONCE = {"PYTHONDONTWRITEBYTECODE": ""}
"""Variables by which Python keeps what it has compiled, as where a user starts a server the second time."""


@dataclass(slots=True)
class Peak:
    rss_mib: float = 0.0
    pss_mib: float = 0.0
    """Shared pages counted once: what the tree takes from the machine."""


class Tree:
    """A command in a process group of its own. A context manager: at its end, nothing of it is left."""

    def __init__(
        self,
        command: list[str],
        variables: dict[str, str],
        log: Path,
        *,
        talks: bool = False,
        watch_seconds: float = WATCH_SECONDS,
    ) -> None:
        """`talks`: its stdin and stdout are pipes to us; else its output goes to the log. `watch_seconds`: how often
        its memory is looked at."""
        self.started = time.perf_counter()
        self.peak = Peak()
        self.watched = True
        """Whether its memory is looked at: that takes time from whatever else runs."""
        self._watch_seconds = watch_seconds
        self._seen: dict[int, psutil.Process] = {}
        self._log: IO[bytes] = log.open("wb")
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | COMPILED_ONCE | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | variables,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else self._log,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._ending = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._watcher.join()
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        self._signal(signal.SIGKILL)
        self.process.wait()
        for process in self._alive():
            process.kill()
        psutil.wait_procs(self._alive(), timeout=10)
        self._log.close()
        assert not self._alive(), "processes survived SIGKILL"

    def cpu_seconds(self) -> float:
        """CPU seconds of the whole tree so far, ended and reaped children included."""
        total = 0.0
        for process in self._tree():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            tree = [root, *root.children(recursive=True)]
        except psutil.Error:
            return []
        self._seen.update((process.pid, process) for process in tree)
        return tree

    def _alive(self) -> list[psutil.Process]:
        """Processes ever seen in the tree that still run, wherever they went."""
        return [p for p in self._seen.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def _watch(self) -> None:
        while not self._ending.wait(self._watch_seconds):
            if not self.watched:
                continue
            tree = self._tree()
            rss = sum(_read(process, lambda process: process.memory_info().rss) for process in tree) / MIB
            if rss >= NEAR * self.peak.rss_mib:
                pss = sum(_read(process, lambda process: process.memory_full_info().pss) for process in tree) / MIB
                self.peak.pss_mib = max(self.peak.pss_mib, pss)
            self.peak.rss_mib = max(self.peak.rss_mib, rss)


def _read(process: psutil.Process, what: Callable[[psutil.Process], int]) -> int:
    """0 where it has ended."""
    try:
        return what(process)
    except psutil.Error:
        return 0
