"""Slots are given out fairly, and never taken from who runs."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from engines.adapters.slots import AdapterSlots

LONGEST = 6
"""Rounds that a request runs at most."""
NAMES = "abcdefg"


def slots_of(count: int, ready: Iterable[str] = NAMES) -> AdapterSlots:
    slots = AdapterSlots(count)
    slots.ready |= {*ready}
    return slots


def admit(slots: AdapterSlots, *versions: str | None) -> list[int]:
    """Run one sequence with each; return their slots."""
    slots.begin()
    assert all(slots.may_run(version) for version in versions)
    return [slots.acquire(version) for version in versions]


# ---- one thing at a time


def test_the_base_model_needs_no_slot() -> None:
    assert slots_of(1).may_run(None)


def test_a_version_runs_once_its_weights_are_in_host_memory() -> None:
    slots = slots_of(1, ready="")
    assert not slots.may_run("a")
    slots.ready.add("a")
    assert slots.may_run("a")


def test_a_free_slot_is_taken_before_an_idle_one_and_the_longest_idle_first() -> None:
    slots = slots_of(3)
    a, b = admit(slots, "a", "b")
    slots.release(b)
    slots.release(a)
    [c] = admit(slots, "c")
    assert c not in (a, b) and not slots.evictions
    assert admit(slots, "d", "e") == [b, a]
    assert (slots.resident, slots.loads.total(), slots.evictions.total()) == (("e", "d", "c"), 5, 2)


def test_a_version_that_comes_back_to_its_slot_is_not_copied_again() -> None:
    slots = slots_of(2)
    [a] = admit(slots, "a")
    slots.release(a)
    assert slots.take_writes() == [(a, "a")]
    assert admit(slots, "a") == [a]
    assert slots.take_writes() == []


def test_where_all_are_in_use_the_one_with_the_fewest_running_empties() -> None:
    slots = slots_of(2)
    admit(slots, "a", "a", "b")
    slots.begin()
    assert not slots.may_run("c")
    assert slots.may_run("a") and not slots.may_run("b")
    slots.begin()
    assert slots.may_run("b"), "nobody waits any more"


def test_requests_of_one_version_empty_one_slot() -> None:
    slots = slots_of(3)
    admit(slots, "a", "a", "b", "c")
    slots.begin()
    assert not any(slots.may_run("d") for _ in range(3))
    assert [slots.may_run(version) for version in "abc"] == [True, False, True]


def test_the_slot_that_empties_stays_the_same_until_it_has() -> None:
    slots = slots_of(2)
    a, _, _, b, _ = admit(slots, "a", "a", "a", "b", "b")
    slots.begin()
    assert not slots.may_run("c")
    slots.release(a)
    slots.release(a)  # it has fewer now, but b has waited for longer
    slots.begin()
    assert not slots.may_run("c")
    assert slots.may_run("a") and not slots.may_run("b")
    slots.release(b)
    slots.release(b)
    assert admit(slots, "c") == [b]


def test_what_has_begun_goes_on_in_a_slot_that_empties() -> None:
    slots = slots_of(1)
    admit(slots, "a")
    slots.begin()
    assert not slots.may_run("b")
    assert not slots.may_run("a")
    assert slots.may_run("a", begun=True)
    assert not slots.may_run("b", begun=True)


def test_a_pinned_version_keeps_its_slot() -> None:
    slots = slots_of(2)
    a, b = admit(slots, "a", "b")
    slots.pinned.add("a")
    slots.release(a)
    slots.begin()
    assert not slots.may_run("c")
    assert not slots.may_run("b")
    slots.release(b)
    assert admit(slots, "c") == [b]


def test_a_version_settles_only_where_that_is_in_nobodys_way() -> None:
    slots = slots_of(1)
    slots.settle("a")
    assert (slots.resident, slots.take_writes()) == (("a",), [(0, "a")])
    admit(slots, "a")
    slots.settle("b")
    assert slots.resident == ("a",)


def test_a_version_that_is_forgotten_leaves_its_slot_empty_and_unwritten() -> None:
    slots = slots_of(2)
    [a] = admit(slots, "a")
    slots.release(a)
    assert slots.unwritten == {"a"}
    assert slots.forget("a") == a
    assert slots.forget("a") is None
    assert (slots.resident, slots.take_writes(), slots.may_run("a")) == ((), [], False)


# ---- everything at once


@dataclass
class Request:
    version: str | None
    rounds: int


@dataclass
class Simulation:
    """Rounds of admissions over a queue, as the scheduler makes them; what is admitted runs some rounds."""

    slots: AdapterSlots
    queue: list[Request] = field(default_factory=list)
    running: list[tuple[Request, int, int]] = field(default_factory=list)  # request, its slot, rounds left
    written: dict[int, str] = field(default_factory=dict)
    head: Request | None = None
    head_for: int = 0

    def round(self, arrivals: list[Request]) -> None:
        self._run()
        self.queue += arrivals
        self._admit()
        for slot, version in self.slots.take_writes():
            assert all(request.version == version for request, at, _ in self.running if at == slot), "in use"
            self.written[slot] = version
        self._check()

    def _run(self) -> None:
        for _, slot, left in self.running:
            if left == 1 and slot >= 0:
                self.slots.release(slot)
        self.running = [(request, slot, left - 1) for request, slot, left in self.running if left > 1]

    def _admit(self) -> None:
        self.slots.begin()
        for request in list(self.queue):
            if self.slots.may_run(request.version):
                slot = -1 if request.version is None else self.slots.acquire(request.version)
                self.running.append((request, slot, request.rounds))
                self.queue.remove(request)

    def _check(self) -> None:
        resident = self.slots.resident
        assert len({*resident}) == len(resident)
        for request, slot, _ in self.running:
            assert request.version is None or self.written[slot] == request.version, "another adapter computes this"
        # Whoever is first in line is admitted once what runs has ended.
        head = self.queue[0] if self.queue else None
        self.head_for = self.head_for + 1 if head is self.head and head is not None else 0
        self.head = head
        assert self.head_for <= LONGEST, "the first in line starves"


requests = st.builds(Request, st.sampled_from([None, *NAMES]), st.integers(1, LONGEST))
rounds = st.lists(st.lists(requests, max_size=4), max_size=40)


@given(count=st.integers(1, 4), rounds=rounds, pinned=st.integers(0, 3))
def test_everyone_gets_a_turn_and_nobody_is_disturbed(count: int, rounds: list[list[Request]], pinned: int) -> None:
    simulation = Simulation(slots_of(count))
    simulation.slots.pinned |= {*NAMES[: min(pinned, count - 1)]}
    for arrivals in rounds:
        simulation.round([Request(one.version, one.rounds) for one in arrivals])
    waiting = len(simulation.queue)
    for _ in range(LONGEST * (waiting + 2)):
        simulation.round([])
    assert not simulation.queue and not simulation.running


@given(count=st.integers(1, 4), cold=st.integers(0, 10), lengths=st.lists(st.integers(1, LONGEST), min_size=1))
def test_adapters_that_are_always_asked_for_do_not_starve_one_that_is_rarely(
    count: int, cold: int, lengths: list[int]
) -> None:
    """The others are more than enough for all slots, and always a step ahead."""
    simulation = Simulation(slots_of(count))
    rare = Request("g", 1)
    admitted = None
    for at in range(cold + 3 * LONGEST):
        hot = [Request(version, lengths[at % len(lengths)]) for version in NAMES[:count] for _ in range(3)]
        simulation.round([rare, *hot] if at == cold else hot)
        if admitted is None and any(request is rare for request, _, _ in simulation.running):
            admitted = at
    assert admitted is not None and admitted - cold <= LONGEST


def test_pins_can_be_more_than_have_settled() -> None:
    slots = slots_of(2)
    slots.pinned.add("a")
    [b] = admit(slots, "b")
    [c] = admit(slots, "c")
    slots.settle("a")
    assert "a" not in slots.resident
    slots.release(b)
    assert admit(slots, "a") == [b]
    slots.release(c)
    slots.release(b)
    assert admit(slots, "d") == [c], "the pinned one stays, though idle for a shorter time"
