"""A background task that fails begins again, after growing pauses, until it is done or cancelled."""

import asyncio
import logging
import time

import pytest

from engines.process.backoff import STEADY, keep_running


class Work:
    """What each try shall do: seconds that it lasts, and how it ends; None: in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *plans: tuple[float, BaseException | None]) -> None:
        self._plans = list(plans)
        self._now = 0.0
        self.pauses: list[float] = []
        self.failures: list[str] = []
        monkeypatch.setattr(time, "monotonic", lambda: self._now)
        monkeypatch.setattr(asyncio, "sleep", self._pause)

    async def run(self) -> None:
        await keep_running("sweeper", self._try, on_failure=self.failures.append)

    async def _try(self) -> None:
        seconds, error = self._plans.pop(0)
        self._now += seconds
        if error is not None:
            raise error

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self._now += seconds


async def test_it_begins_again_after_growing_pauses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work(monkeypatch, *[(1, OSError("disk full"))] * 8, (1, None))
    with caplog.at_level(logging.ERROR):
        await work.run()
    assert work.pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert work.failures == ["sweeper"] * 8
    assert "sweeper" in caplog.text and "disk full" in caplog.text


async def test_a_good_try_makes_the_next_pause_short_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bug = KeyError("a bug")
    work = Work(monkeypatch, (1, bug), (1, bug), (STEADY + 1, bug), (1, bug), (1, None))
    await work.run()
    assert work.pauses == [0.5, 1, 0.5, 1]


async def test_what_it_awaits_may_be_cancelled_without_ending_it(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch, (1, asyncio.CancelledError()), (1, None))
    await work.run()
    assert work.failures == ["sweeper"]


async def test_a_count_that_fails_does_not_end_it() -> None:
    tries = []

    async def work() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise KeyError("a bug")

    def count(name: str) -> None:
        raise ValueError("no such label")

    await keep_running("sweeper", work, on_failure=count)
    assert len(tries) == 2


async def test_who_cancels_it_ends_it() -> None:
    task = asyncio.create_task(keep_running("sweeper", asyncio.Event().wait))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
