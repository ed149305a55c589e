"""Who answers and makes steps goes on, however slowly; who does not is stuck."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from engines.process import frames, watchdog
from engines.process.watchdog import PING_SECONDS, Stuck, Watchdog, watch_for_stopped
from engines.types import EngineStats, TokenOutput


class Watched:
    """A watchdog of ten seconds, each of which is a look, and what it sees."""

    def __init__(self) -> None:
        self.work = False
        self.pings = 0
        self.steps = 0
        self.dog = Watchdog(10, has_work=lambda: self.work, ping=self._ping)

    def _ping(self) -> None:
        self.pings += 1

    def pong(self) -> None:
        self.dog.hear(frames.Step(EngineStats(steps=self.steps), 0))

    def pass_seconds(self, seconds: int) -> None:
        for _ in range(seconds):
            self.dog.look()


def test_an_idle_engine_that_answers_may_be_idle_for_ever() -> None:
    watched = Watched()
    for _ in range(20):
        watched.pass_seconds(int(PING_SECONDS))
        watched.pong()
    assert watched.pings == 20


def test_one_that_does_not_answer_is_stuck_with_work_or_without() -> None:
    for work in (True, False):
        watched = Watched()
        watched.work = work
        watched.pass_seconds(9)
        with pytest.raises(Stuck, match="has not answered for 10 s"):
            watched.pass_seconds(1)


def test_one_that_answers_and_makes_no_step_is_stuck_where_there_is_work() -> None:
    watched = Watched()
    watched.pass_seconds(9)
    watched.pong()
    watched.work = True
    for _ in range(3):
        watched.pass_seconds(3)
        watched.pong()
    with pytest.raises(Stuck, match="no step for 10 s"):
        watched.pass_seconds(1)


def test_steps_without_outputs_are_steps() -> None:
    """As of a long prompt that is computed in parts."""
    watched = Watched()
    watched.work = True
    for _ in range(20):
        watched.pass_seconds(9)
        watched.steps += 1
        watched.pong()


def test_outputs_are_steps_where_none_are_counted() -> None:
    watched = Watched()
    watched.work = True
    for _ in range(20):
        watched.pass_seconds(9)
        watched.dog.hear(frames.Step(EngineStats(), 1, outputs=[("r", TokenOutput(index=0))]))


@pytest.fixture
def family() -> Iterator[list[psutil.Process]]:
    """A process and its child."""
    program = "import subprocess, sys; print(subprocess.Popen(['sleep', '100']).pid, flush=True); input()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        made = [psutil.Process(parent.pid), psutil.Process(int(parent.stdout.readline()))]
        yield made
        for process in made:
            process.kill()


async def test_a_process_that_is_stopped_is_noticed_and_so_is_a_child_of_it(
    monkeypatch: pytest.MonkeyPatch, family: list[psutil.Process]
) -> None:
    monkeypatch.setattr(watchdog, "STATE_SECONDS", 0.05)
    for process in family:
        watching = asyncio.create_task(watch_for_stopped(family[0].pid))
        await asyncio.sleep(0.3)
        assert not watching.done()
        process.suspend()
        with pytest.raises(Stuck, match=f"process {process.pid}"):
            await watching
        process.resume()
