"""An engine that dies is started again, with growing pauses, until it cannot be started at all."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from engines.errors import EngineFailure, EngineUnavailable, UnsupportedModel
from engines.process.backoff import STEADY
from engines.process.life import End
from engines.process.supervisor import TASK, Supervisor
from engines.types import EngineState


class Lives:
    """What each start shall do: an error to raise, or the seconds of a life."""

    def __init__(self, *plans: float | Exception) -> None:
        self.plans = list(plans)
        self.now = 0.0
        self.pauses: list[float] = []
        self.deaths: list[str] = []
        self.states: list[EngineState] = []
        self.supervisor = Supervisor(self.start, self.deaths.append, max_restarts=10)
        self.over = asyncio.Event()

    async def start(self) -> Coroutine[Any, Any, End]:
        if not self.plans:
            self.over.set()
            await asyncio.Event().wait()
        plan = self.plans.pop(0)
        if isinstance(plan, Exception):
            raise plan
        return self.live(plan)

    async def live(self, seconds: float) -> End:
        self.states.append(self.supervisor.health.state)
        self.now += seconds
        return End("exited", f"lived {seconds:g} s")

    async def pause(self, seconds: float) -> None:
        self.states.append(self.supervisor.health.state)
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lives]:
    made = []

    def make(*plans: float | Exception) -> Lives:
        made.append(Lives(*plans))
        monkeypatch.setattr(time, "monotonic", lambda: made[-1].now)
        monkeypatch.setattr(asyncio, "sleep", made[-1].pause)
        return made[-1]

    return make


async def test_pauses_double_up_to_the_longest(lives: Callable[..., Lives]) -> None:
    run = lives(*[1] * 9)
    await run.supervisor.start()
    await run.over.wait()
    assert run.pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert run.deaths == ["its process lived 1 s"] * 9
    await run.supervisor.stop()


async def test_a_good_life_makes_the_next_pause_short_again(lives: Callable[..., Lives]) -> None:
    run = lives(1, 1, 1, STEADY + 1, 1)
    await run.supervisor.start()
    await run.over.wait()
    assert run.pauses == [0.5, 1, 2, 0.5, 1]
    await run.supervisor.stop()


async def test_a_start_that_fails_is_tried_again_after_a_longer_pause(lives: Callable[..., Lives]) -> None:
    run = lives(STEADY + 1, EngineFailure("no memory"), EngineFailure("no memory"), 1)
    await run.supervisor.start()
    await run.over.wait()
    assert run.pauses == [0.5, 1, 2, 4]
    await run.supervisor.stop()


async def test_it_is_ready_while_it_lives_and_restarting_while_it_does_not(lives: Callable[..., Lives]) -> None:
    run = lives(1, 1)
    await run.supervisor.start()
    await run.over.wait()
    ready, restarting = EngineState.READY, EngineState.RESTARTING
    assert run.states == [ready, restarting, ready, restarting]
    assert (run.supervisor.health.state, run.supervisor.health.detail) == (restarting, "its process lived 1 s")
    await run.supervisor.stop()
    assert run.supervisor.health.state is EngineState.STOPPED


async def test_a_model_that_has_become_unloadable_is_not_tried_again(lives: Callable[..., Lives]) -> None:
    run = lives(1, UnsupportedModel("the folder is gone"))
    await run.supervisor.start()
    await run.supervisor._watcher
    assert run.supervisor.health.state is EngineState.FAILED
    assert run.supervisor.health.detail == "the folder is gone"
    await run.supervisor.stop()


async def test_a_start_that_fails_of_the_machine_is_tried_again(lives: Callable[..., Lives]) -> None:
    run = lives(1, OSError("Too many open files"), RuntimeError("can't start new thread"), 1)
    await run.supervisor.start()
    await run.over.wait()
    assert run.deaths == ["its process lived 1 s"] * 2
    assert run.supervisor.restarts == {"exited": 2, "start_failed": 2}
    await run.supervisor.stop()


async def test_too_many_restarts_in_a_row_are_the_end(lives: Callable[..., Lives]) -> None:
    run = lives(1, 1, STEADY + 1, *[1] * 20)
    await run.supervisor.start()
    await run.supervisor._watcher
    assert len(run.deaths) == 2 + 1 + 10
    assert run.supervisor.health.state is EngineState.FAILED
    assert "11 times in a row" in run.supervisor.health.detail
    await run.supervisor.stop()


async def test_an_error_in_supervision_itself_is_logged_and_counted_and_the_engine_started_again(
    lives: Callable[..., Lives], caplog: pytest.LogCaptureFixture
) -> None:
    run = lives(1, 1)
    told = []

    def broken(reason: str) -> None:
        told.append(reason)
        if len(told) == 1:
            raise KeyError("a bug")

    run.supervisor._on_death = broken
    await run.supervisor.start()
    await run.over.wait()
    assert run.supervisor.task_failures == {TASK: 1} and TASK in caplog.text
    assert told == ["its process lived 1 s", "its process was lost out of sight", "its process lived 1 s"]
    assert run.supervisor.restarts == {"internal": 1, "exited": 1}
    await run.supervisor.stop()


async def test_an_engine_that_nobody_watches_has_failed(lives: Callable[..., Lives]) -> None:
    run = lives(1)
    await run.supervisor.start()
    run.supervisor._watcher.cancel()
    await asyncio.gather(run.supervisor._watcher, return_exceptions=True)
    assert isinstance(run.supervisor._life, Coroutine)
    run.supervisor._life.close()
    states = [run.supervisor.health.state]
    await run.supervisor.stop()
    assert [*states, run.supervisor.health.state] == [EngineState.FAILED, EngineState.STOPPED]


async def test_the_first_start_raises_what_is_wrong(lives: Callable[..., Lives]) -> None:
    run = lives(UnsupportedModel("not a model"))
    with pytest.raises(UnsupportedModel):
        await run.supervisor.start()
    assert (run.supervisor.health.state, run.supervisor.health.detail) == (EngineState.FAILED, "not a model")
    assert run.pauses == []


async def test_stopped_while_it_starts_it_stays_stopped() -> None:
    loaded = asyncio.Event()

    async def start() -> Awaitable[End]:
        await loaded.wait()
        return asyncio.get_running_loop().create_future()

    slow = Supervisor(start, lambda reason: None, max_restarts=10)
    starting = asyncio.create_task(slow.start())
    await asyncio.sleep(0)
    await slow.stop()
    loaded.set()
    with pytest.raises(EngineUnavailable):
        await starting
    assert slow.health.state is EngineState.STOPPED
