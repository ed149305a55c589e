"""Fair queueing between shares: the Virtual Token Counter (Sheng et al. 2024, arXiv:2401.00588).

Each share has a counter of the tokens that were computed for it, divided by its weight, and of the shares that wait the
one with the lowest counter is next. A share that asked for little is lifted to the others, less what it may save: it
cannot save up idle time, and is still answered at once.
"""

from collections.abc import Iterable

OUTPUT_COST = 2.0
"""Cost of a token of an output, where one of a prompt costs 1: the paper's."""


class Counters:
    def __init__(self, *, saved: float) -> None:
        """`saved`: cost of the tokens that a share which asks for little may be ahead of the others."""
        self._saved = saved
        self._counters: dict[str | None, float] = {}
        self._time = 0.0  # what the lowest counter of those that waited has come to: it never falls
        self.weights: dict[str | None, float] = {}
        """What the latest request of each share said."""

    def of(self, share: str | None) -> float:
        return self._counters.get(share, 0.0)

    def lift(self, share: str | None) -> None:
        """The share begins to wait."""
        self._counters[share] = max(self.of(share), self._time - self._saved)

    def saved(self, share: str | None) -> float:
        """Cost of the tokens that the share has saved: it may have these before it comes level with the others."""
        return (self._time - self.of(share)) * self.weights[share]

    def charge(self, share: str | None, cost: float) -> None:
        self._counters[share] = self.of(share) + cost / self.weights[share]

    def note(self, waiting: Iterable[str | None]) -> None:
        """These shares wait now."""
        self._time = max(self._time, min(map(self.of, waiting), default=0.0))

    def forget(self) -> None:
        """Nobody waits: nobody is owed anything."""
        self._counters.clear()
        self._time = 0.0
