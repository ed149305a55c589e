"""What goes on in the background until it is over."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from engines.errors import Conflict, StorageFull
from server import backlog
from server.backlog import Backlog
from server.tasks import Tasks
from tests.until import async_until

OWNERS = ["one"] * 6 + ["other"] * 2


class Office:
    """Eight pieces, each of which goes on until it is let go."""

    def __init__(self, folder: Path) -> None:
        self.waiting = {f"piece-{number}": owner for number, owner in enumerate(OWNERS)}
        self.begun: list[str] = []
        self.given_up: list[str] = []
        self.let_go: dict[str, asyncio.Future[None]] = {}
        self.listed = asyncio.Event()
        self.listed.set()
        self.registry = CollectorRegistry()
        self.tasks = Tasks(self.registry, prefix="")
        database: Any = SimpleNamespace(id="database")
        self.backlog = Backlog("piece", folder, database, self._unfinished, self._work, self._give_up, self.tasks)

    async def _unfinished(self) -> list[tuple[str, str | None]]:
        waiting = [*self.waiting.items()]
        await self.listed.wait()
        return waiting

    async def _work(self, id: str) -> None:
        self.begun.append(id)
        self.let_go[id] = asyncio.get_running_loop().create_future()
        await self.let_go[id]
        del self.waiting[id]

    async def _give_up(self, id: str) -> None:
        self.given_up.append(id)
        del self.waiting[id]


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


async def test_one_owner_has_some_at_a_time_and_what_is_over_makes_room(office: Office) -> None:
    await office.backlog.open()
    running = asyncio.create_task(office.backlog.run_for_ever())
    await async_until(lambda: len(office.begun) == 6)
    assert [*map(office.waiting.get, office.begun)].count("one") == backlog.MAX_RUNNING_OF_ONE
    folder = await office.backlog.make_folder("piece-0")
    office.let_go["piece-0"].set_result(None)
    await async_until(lambda: "piece-4" in office.begun)
    assert not folder.exists()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_is_left_to_another_server_is_tried_again_with_the_next_news(office: Office) -> None:
    running = asyncio.create_task(office.backlog.run_for_ever())
    await async_until(lambda: "piece-0" in office.begun)
    office.let_go["piece-0"].set_exception(Conflict("the database is another server's"))
    await asyncio.sleep(0.1)
    assert office.begun.count("piece-0") == 1
    office.backlog.look()
    await async_until(lambda: office.begun.count("piece-0") == 2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_is_broken_off_leaves_nothing_and_what_a_server_leaves_stays(office: Office) -> None:
    await office.backlog.open()
    kept, removed = [await office.backlog.make_folder(f"piece-{number}") for number in (0, 1)]
    running = asyncio.create_task(office.backlog.run_for_ever())
    await async_until(lambda: len(office.begun) == 6)
    del office.waiting["piece-1"]
    await office.backlog.break_off("piece-1")
    await async_until(lambda: not removed.exists())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert kept.exists()
    office.waiting.clear()
    await office.backlog.open()
    assert not kept.exists()


async def test_what_came_to_its_end_while_the_list_was_read_is_not_begun_again(office: Office) -> None:
    running = asyncio.create_task(office.backlog.run_for_ever())
    await async_until(lambda: len(office.begun) == 6)
    office.listed.clear()
    office.backlog.look()
    await asyncio.sleep(0)  # the list is under way
    office.let_go["piece-0"].set_result(None)
    await async_until(lambda: "piece-0" not in office.waiting)
    await asyncio.sleep(0.1)
    office.listed.set()
    await async_until(lambda: "piece-4" in office.begun)
    assert office.begun.count("piece-0") == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_has_to_wait_is_tried_again_and_what_breaks_off_is_given_up(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "RETRY_SECONDS", 0.01)
    running = asyncio.create_task(office.backlog.run_for_ever())
    await async_until(lambda: len(office.begun) == 6)
    office.let_go["piece-0"].set_exception(StorageFull("no room"))
    await async_until(lambda: office.begun.count("piece-0") == 2)
    office.let_go["piece-0"].set_exception(ZeroDivisionError())
    await async_until(lambda: office.given_up == ["piece-0"])
    assert office.registry.get_sample_value("task_failures_total", {"task": "piece"}) == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
