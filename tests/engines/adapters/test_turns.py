"""Adapters take turns in an engine's slots, and nobody computes with another's weights."""

import asyncio
import random
from pathlib import Path

import pytest

from engines.adapters.turns import AdapterTurns
from engines.errors import EngineFailure, InvalidAdapter

FOLDER = Path("nowhere")


class Library:
    """An engine's slots, as the library that computes with them sees it."""

    def __init__(self, num_slots: int) -> None:
        self.slots: dict[int, str] = {}
        self.broken: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.turns = AdapterTurns(num_slots, put=self.put, take=self.take)

    async def put(self, slot: int, version: str, folder: Path) -> None:
        assert slot not in self.slots, "it was emptied before"
        assert version not in self.slots.values(), "a version is in one slot at most"
        await self.gate.wait()
        if version in self.broken:
            raise ValueError("broken weights")
        self.slots[slot] = version

    async def take(self, slot: int, version: str) -> None:
        assert self.slots.pop(slot) == version
        await asyncio.sleep(0)

    async def load(self, *versions: str) -> None:
        for version in versions:
            await self.turns.load(version, FOLDER, pinned=False)

    async def hold(self, version: str | None, until: asyncio.Event) -> str | None:
        """Compute with a version; return what was in its slot."""
        async with self.turns.use(version) as turn:
            turn.end = until.set
            await until.wait()
            return None if turn.slot is None else self.slots[turn.slot]


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_base_model_waits_for_nothing() -> None:
    async with Library(1).turns.use(None) as turn:
        assert turn.slot is None


async def test_an_adapter_is_put_into_an_empty_slot_when_it_is_loaded() -> None:
    library = Library(2)
    await library.load("a", "b", "c")
    assert {*library.slots.values()} == {"a", "b"} == {*library.turns.resident}
    assert library.turns.loaded == ("a", "b", "c")


async def test_the_one_that_has_been_idle_longest_makes_room() -> None:
    library = Library(2)
    await library.load("a", "b", "c")
    async with library.turns.use("a"):
        pass
    async with library.turns.use("c") as turn:
        assert library.slots[turn.slot] == "c"
    assert {*library.turns.resident} == {"a", "c"}
    assert library.turns.evictions == {"b": 1}
    assert library.turns.loads == {"a": 1, "b": 1, "c": 1}


async def test_with_all_slots_in_use_a_request_waits_for_the_first_that_empties() -> None:
    library, until = Library(1), asyncio.Event()
    await library.load("a", "b")
    first = asyncio.create_task(library.hold("a", until))
    await settled()
    second = asyncio.create_task(library.hold("b", until))
    await settled()
    assert library.turns.resident == ("a",)
    until.set()
    assert [*await asyncio.gather(first, second)] == ["a", "b"]


async def test_who_stops_waiting_leaves_nothing_behind() -> None:
    library, until = Library(1), asyncio.Event()
    await library.load("a", "b")
    first = asyncio.create_task(library.hold("a", until))
    await settled()
    waiting = asyncio.create_task(library.hold("b", until))
    await settled()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not library.turns._queue
    until.set()
    assert await first == "a"


async def test_who_stops_waiting_while_the_weights_come_in_leaves_the_slot_to_the_next() -> None:
    library, until = Library(1), asyncio.Event()
    until.set()
    await library.load("a", "b", "c")
    library.gate.clear()
    waiting = asyncio.create_task(library.hold("b", until))
    await settled()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    next_one = asyncio.create_task(library.hold("c", until))
    await settled()
    library.gate.set()
    assert await next_one == "c"


async def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(EngineFailure, match="does not hold"):
        async with Library(1).turns.use("a"):
            pass


async def test_weights_that_cannot_be_put_in_are_told_to_who_loads_them_and_are_forgotten() -> None:
    library = Library(1)
    library.broken.add("a")
    with pytest.raises(EngineFailure, match="broken weights"):
        await library.load("a")
    assert not library.turns.loaded and not library.turns.resident
    await library.load("b")
    assert library.turns.resident == ("b",)


async def test_weights_that_break_later_end_the_requests_of_that_version_alone_until_they_are_mended() -> None:
    library, done = Library(1), asyncio.Event()
    done.set()
    await library.load("a", "b")
    library.broken.add("b")
    results = await asyncio.gather(*(library.hold(one, done) for one in "bbab"), return_exceptions=True)
    assert results[2] == "a"
    assert all(isinstance(results[i], EngineFailure) for i in (0, 1, 3))
    library.broken.clear()
    assert await library.hold("b", done) == "b"


async def test_an_unloaded_adapter_ends_who_uses_it_and_who_waits_for_it() -> None:
    library, until, never = Library(1), asyncio.Event(), asyncio.Event()
    await library.load("a", "b")
    using = asyncio.create_task(library.hold("a", until))
    await settled()
    waiting = asyncio.create_task(library.hold("b", never))
    also = asyncio.create_task(library.hold("a", never))
    await settled()
    await library.turns.unload("b")
    with pytest.raises(EngineFailure, match="unloaded"):
        await waiting
    await library.turns.unload("a")
    for task in (using, also):
        with pytest.raises(EngineFailure, match="unloaded"):
            await task
    assert library.slots == {} and library.turns.loads == {}
    await library.turns.unload("a")


async def test_a_pinned_adapter_is_put_in_at_once_and_stays() -> None:
    library, done = Library(2), asyncio.Event()
    done.set()
    await library.load("a", "b")
    await library.turns.load("p", FOLDER, pinned=True)
    assert "p" in library.turns.resident
    with pytest.raises(InvalidAdapter) as refused:
        await library.turns.load("q", FOLDER, pinned=True)
    assert refused.value.param == "pinned" and "q" not in library.turns.loaded
    for one in "abab":
        assert await library.hold(one, done) == one
        assert "p" in library.turns.resident
    await library.turns.load("p", FOLDER, pinned=False)
    await library.turns.load("a", FOLDER, pinned=True)
    assert await library.hold("b", done) == "b"
    assert {*library.turns.resident} == {"a", "b"}


async def test_an_adapter_that_could_not_be_pinned_is_not() -> None:
    library, done = Library(2), asyncio.Event()
    done.set()
    await library.load("a", "b", "c")
    library.broken.add("c")
    with pytest.raises(EngineFailure):
        await library.turns.load("c", FOLDER, pinned=True)
    assert "c" in library.turns.loaded
    await library.turns.load("a", FOLDER, pinned=True)  # there is room for one pin: it was not taken
    assert await library.hold("b", done) == "b"


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_comes_every_request_computes_with_its_own_weights_and_gets_its_turn(seed: int) -> None:
    dice = random.Random(seed)
    library = Library(dice.randint(1, 3))
    names = "abcde"
    served = 0

    async def one_request() -> None:
        nonlocal served
        version = dice.choice(names)
        try:
            async with library.turns.use(version) as turn:
                for _ in range(dice.randint(1, 5)):
                    assert turn.gone or library.slots[turn.slot] == version
                    await asyncio.sleep(0)
            served += 1
        except EngineFailure as error:
            assert "unloaded" in error.message or "does not hold" in error.message

    async def churn() -> None:
        for _ in range(15):
            version = dice.choice(names)
            if dice.random() < 0.5:
                await library.turns.unload(version)
            await library.turns.load(version, FOLDER, pinned=False)
            await asyncio.sleep(0)

    await library.load(*names)
    async with asyncio.timeout(10):
        requests = [asyncio.create_task(one_request()) for _ in range(60)]
        await asyncio.gather(churn(), *requests[:40])
        for doomed in requests[40:50]:
            doomed.cancel()
        await asyncio.gather(*requests[40:], return_exceptions=True)
    assert served
    assert not library.turns._queue and not any(library.turns._turns.values())
