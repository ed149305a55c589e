"""Run a job's folder here and now: a worker process, whose events are shown and whose signals are ours."""

import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from engines.process.children import kill_group, with_parent_death_signal
from server.commands.progress import Progress
from server.jobs.worker_process import worker_command, worker_environment
from training.folder import LOG, JobFolder, Result
from training.machines import ALONE, Machines

LOOKS_EVERY = 0.2
"""Seconds between two looks at the events."""
AFTER_THIS_STEP = "Stopping after this step. A second Ctrl-C ends it at once, and keeps nothing."
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Ended:
    status: int
    """Exit status of the process; below 0: the signal that killed it."""
    result: Result | None
    signal: int | None
    """The first that asked us to stop."""


def run_here(
    folder: JobFolder,
    progress: Progress,
    *,
    secrets: Mapping[str, str],
    processes: int = 1,
    machines: Machines = ALONE,
    stopping: str = AFTER_THIS_STEP,
) -> Ended:
    """Run `folder` to its end. Our first SIGINT, SIGTERM or SIGHUP asks the worker to stop, a second one kills it.
    `secrets`: environment variables for it. `processes`: on this one of the `machines`.
    `stopping`: what is said once it was asked to stop."""
    with (folder.path / LOG).open("ab") as log:
        process = subprocess.Popen(
            with_parent_death_signal(worker_command(folder.path, processes=processes, machines=machines)),
            env=worker_environment(secrets),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # the terminal's Ctrl-C comes to us alone
        )
    with _passing_on_signals(process) as received:
        _show_until_it_ends(process, folder, progress, received, stopping)
    progress.close()
    kill_group(process.pid)  # what it may have left behind
    return Ended(process.returncode, folder.read_result(), next(iter(received), None))


def _show_until_it_ends(
    process: subprocess.Popen[bytes], folder: JobFolder, progress: Progress, received: list[int], stopping: str
) -> None:
    offset, ended, told = 0, False, False
    while not ended:
        ended = process.poll() is not None
        for event, after in folder.read_events(offset):
            progress.show(event)
            offset = after
        if received and not told:
            progress.say(stopping)
            told = True
        if not ended:
            time.sleep(LOOKS_EVERY)


@contextmanager
def _passing_on_signals(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Those that came, in their order. Nothing is written when one comes: something may just be being written."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            process.terminate()
        else:
            kill_group(process.pid)

    before = {number: signal.signal(number, pass_on) for number in STOPPING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_of_log(folder: Path) -> str:
    """The last 20 lines of what the libraries said."""
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-20:])
