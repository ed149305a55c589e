"""Slots of adapters: which adapter is in which, and which waiting requests may therefore run. Only bookkeeping.

More adapters than slots take turns. A request whose adapter has no slot gets a free one, or that of the adapter that
has been idle longest. Where all are in use, the first in line picks the slot with the fewest running sequences, and
nobody behind it is admitted to that one any more: it empties within the time of what runs there, however much the
others ask for it. So a busy adapter cannot keep a rare one waiting, and the other slots go on meanwhile. What
belongs to a request that has begun is admitted to an emptying slot, too: beams rest until their siblings, which may
have been preempted, catch up.
"""

from collections import Counter
from collections.abc import Set as AbstractSet


class AdapterSlots:
    def __init__(self, num_slots: int) -> None:
        self._version: list[str | None] = [None] * num_slots
        self._users = [0] * num_slots  # sequences that run
        self._last_use = [0] * num_slots
        self._clock = 0
        self._draining: dict[str, int] = {}  # version that waits -> slot that empties for it
        self._draining_before: dict[str, int] = {}  # in the round before
        self._writes: dict[int, str] = {}
        self.ready: set[str] = set()
        """Versions whose weights are in host memory: these can be put into a slot."""
        self.pinned: set[str] = set()
        self.loads: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()

    @property
    def resident(self) -> tuple[str, ...]:
        return tuple(version for version in self._version if version is not None)

    def begin(self) -> None:
        """A new round of admissions, from the first in line."""
        self._draining, self._draining_before = {}, self._draining

    def may_run(self, version: str | None, *, begun: bool = False) -> bool:
        """Whether the first waiting sequence can be admitted now. Where it must wait for a slot, this chooses which
        empties.

        `begun`: it belongs to a request that has run before.
        """
        if version is None:
            return True
        slot = self.slot_of(version)
        if slot is not None:
            return begun or slot not in self._draining.values()
        if version not in self.ready or version in self._draining:
            return False
        if self._idle_slot() is not None:
            return True
        candidates = [s for s in self._evictable() if s not in self._draining.values()]
        if candidates:
            fewest = min(candidates, key=lambda s: (self._users[s], self._last_use[s]))
            before = self._draining_before.get(version)
            # The same as before: with another one each round, none of them might ever empty.
            self._draining[version] = before if before in candidates else fewest
        return False

    def acquire(self, version: str) -> int:
        """One more sequence runs with a version that `may_run`, or that runs already: return its slot."""
        slot = self.slot_of(version)
        if slot is None:
            slot = self._idle_slot()
            assert slot is not None and version in self.ready, "it may run"
            evicted = self._version[slot]
            if evicted is not None:
                self.evictions[evicted] += 1
            self.loads[version] += 1
            self._version[slot] = version
            self._writes[slot] = version
        self._users[slot] += 1
        return slot

    def release(self, slot: int) -> None:
        """One of its sequences has stopped running."""
        self._users[slot] -= 1
        self._clock += 1
        self._last_use[slot] = self._clock

    def settle(self, version: str) -> None:
        """Give a ready version its slot ahead of its first request, where one is idle."""
        if self.slot_of(version) is None and self._idle_slot() is not None:
            self.release(self.acquire(version))

    def vacate(self, version: str) -> int | None:
        """Empty its slot, and return which that was; no sequence runs with it."""
        slot = self.slot_of(version)
        if slot is not None:
            assert not self._users[slot], "nobody asks for it any more"
            self._version[slot] = None
            self._last_use[slot] = 0
            self._writes.pop(slot, None)
        return slot

    def forget(self, version: str) -> int | None:
        """The version is gone: `vacate`, and it is neither ready nor pinned nor counted."""
        self.loads.pop(version, None)
        self.evictions.pop(version, None)
        self.ready.discard(version)
        self.pinned.discard(version)
        return self.vacate(version)

    @property
    def unwritten(self) -> AbstractSet[str]:
        """Versions that have a slot, but have yet to be copied to it."""
        return {*self._writes.values()}

    def take_writes(self) -> list[tuple[int, str]]:
        """(slot, version) of what must be copied before the next forward pass."""
        writes, self._writes = self._writes, {}
        return list(writes.items())

    def slot_of(self, version: str) -> int | None:
        return self._version.index(version) if version in self._version else None

    def _idle_slot(self) -> int | None:
        idle = [slot for slot in self._evictable() if not self._users[slot]]
        return min(idle, key=lambda slot: (self._version[slot] is not None, self._last_use[slot]), default=None)

    def _evictable(self) -> list[int]:
        kept: AbstractSet[str | None] = self.pinned
        return [slot for slot, version in enumerate(self._version) if version not in kept]
