"""A process that is killed with SIGKILL at a chosen step of what it does to its files.

A scenario is a module that `run_scenario` runs as a program: it forks a child for each step, so it has no threads.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MOST_STEPS = 1000
FILE_EVENTS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"})


class Killer:
    """Kills its process once as many steps were made as it was armed with."""

    def __init__(self) -> None:
        self._left: int | None = None
        self._lock = threading.Lock()

    def arm(self, steps: int) -> None:
        self._left = steps

    def disarm(self) -> None:
        self._left = None

    def step(self) -> None:
        with self._lock:
            if self._left is None:
                return
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch_events(self, events: Iterable[str] = FILE_EVENTS) -> None:
        """Each of these of Python's audit events is a step. It cannot be taken back."""
        watched = frozenset(events)
        sys.addaudithook(lambda event, args: self.step() if event in watched else None)

    def watch_calls(self, owner: Any, name: str) -> None:
        """There is a step before and one after each call of this function."""
        function = getattr(owner, name)

        def stepped(*args: Any, **kwargs: Any) -> Any:
            self.step()
            result = function(*args, **kwargs)
            self.step()
            return result

        setattr(owner, name, stepped)


def run_scenario(module: str, *words: str) -> str:
    """What the module wrote."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def was_killed(work: Callable[[], object]) -> bool:
    """Whether a fork of this process that does the work was killed."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL), status
    return status != 0


def check_all_or_nothing(
    prepare: Callable[[], object],
    work: Callable[[int], object],
    look: Callable[[], Any],
    after_kill: Callable[[Any], object] = lambda seen: None,
) -> str:
    """The work, killed at its first step, at its second and so on, counts from one step on and not at all before.

    `work` takes the number of steps that it may make; `after_kill` takes what `look` saw. Says which step it is.
    """
    outcomes: list[Any] = []
    for steps in range(MOST_STEPS):
        prepare()
        before = look()
        killed = was_killed(lambda steps=steps: work(steps))  # type: ignore[misc]
        outcomes.append(look())
        if not killed:
            break
        after_kill(outcomes[-1])
    after = outcomes[-1]
    assert before != after
    turn = outcomes.index(after)
    assert turn > 0 and outcomes == [before] * turn + [after] * (len(outcomes) - turn), outcomes
    return f"{steps} steps, {turn} before it counts"
