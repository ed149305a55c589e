"""Which adapter is in which slot, and which waiting requests may therefore run. Only bookkeeping.

More adapters than slots take turns. A request whose adapter has no slot gets a free one, or that of the adapter that has
been idle longest. Where all are in use, the first in line picks the slot with the fewest running sequences, and nobody
behind it is admitted to that one any more: it empties within the time of what runs there, however much the others ask
for it. So a busy adapter cannot keep a rare one waiting, and the other slots go on meanwhile.
"""

from collections.abc import Set as AbstractSet


class AdapterSlots:
    def __init__(self, num_slots: int) -> None:
        self._version: list[str | None] = [None] * num_slots
        self._users = [0] * num_slots  # sequences that run
        self._last_use = [0] * num_slots
        self._clock = 0
        self._draining: set[int] = set()
        self._writes: list[tuple[int, str]] = []
        self.ready: set[str] = set()
        """Versions whose weights are in host memory: these can be put into a slot."""
        self.pinned: set[str] = set()
        self.loads = 0
        self.evictions = 0

    @property
    def resident(self) -> tuple[str, ...]:
        return tuple(version for version in self._version if version is not None)

    def begin(self) -> None:
        """A new round of admissions, from the first in line."""
        self._draining.clear()

    def may_run(self, version: str | None) -> bool:
        """Whether the next in line can be admitted now. Where it has to wait for a slot, this chooses which empties."""
        if version is None:
            return True
        slot = self.slot_of(version)
        if slot is not None:
            return slot not in self._draining
        if version not in self.ready:
            return False
        if self._idle_slot() is not None:
            return True
        candidates = [s for s in self._evictable() if s not in self._draining]
        if candidates:
            self._draining.add(min(candidates, key=lambda s: (self._users[s], self._last_use[s])))
        return False

    def acquire(self, version: str) -> int:
        """One more sequence runs with a version that `may_run`, or that runs already: return its slot."""
        slot = self.slot_of(version)
        if slot is None:
            slot = self._idle_slot()
            assert slot is not None and version in self.ready, "it may run"
            self.evictions += self._version[slot] is not None
            self.loads += 1
            self._version[slot] = version
            self._writes.append((slot, version))
        self._users[slot] += 1
        return slot

    def release(self, slot: int) -> None:
        """One of its sequences has stopped running."""
        self._users[slot] -= 1
        self._clock += 1
        self._last_use[slot] = self._clock

    def forget(self, version: str) -> None:
        """Empty its slot; no sequence runs with it."""
        self.ready.discard(version)
        self.pinned.discard(version)
        slot = self.slot_of(version)
        if slot is not None:
            assert not self._users[slot], "nobody asks for it any more"
            self._version[slot] = None
            self._last_use[slot] = 0
            self._writes = [write for write in self._writes if write[1] != version]

    def take_writes(self) -> list[tuple[int, str]]:
        """(slot, version) of what must be copied before the next forward pass."""
        writes, self._writes = self._writes, []
        return writes

    def slot_of(self, version: str) -> int | None:
        return self._version.index(version) if version in self._version else None

    def _idle_slot(self) -> int | None:
        idle = [slot for slot in self._evictable() if not self._users[slot]]
        return min(idle, key=lambda slot: (self._version[slot] is not None, self._last_use[slot]), default=None)

    def _evictable(self) -> list[int]:
        kept: AbstractSet[str | None] = self.pinned
        return [slot for slot, version in enumerate(self._version) if version not in kept]
