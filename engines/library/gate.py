"""Fair queueing in front of a library, whose own queue knows no shares.

The library gets as many sequences as it runs at once, and a few more, so that none of its seats is ever empty; the
other requests wait here. Next is a request of the share that has got least (`engines/fairness/counters.py`), by
priority and arrival within the share. What the library has, it computes to its end. Requests without a share, as on a
server without keys, do not wait here.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from engines.fairness.counters import OUTPUT_COST, Counters
from engines.types import GenerationRequest, PoolingRequest

MORE = 1 / 8
"""Part of the seats that may wait within the library: these sequences take the seats of those that end in a step."""
SAVED = 4096
"""Tokens that a share which asks for little may be ahead."""


@dataclass(eq=False, slots=True)
class Place:
    """A request that waits, or that the library has."""

    share: str | None
    order: tuple[int, int]
    seats: int
    tokens: int
    """Length of its prompt."""
    seated: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Until the library may have the request."""
        await self.seated.wait()


class Gate:
    def __init__(self, max_num_seqs: int) -> None:
        """`max_num_seqs`: how many sequences the library runs at once."""
        self._seats = max_num_seqs + max(1, round(MORE * max_num_seqs))
        self._taken: Counter[str] = Counter()  # seats, by share
        self._lines: dict[str, list[Place]] = {}  # by share; none is empty
        self._counters = Counters(saved=SAVED)
        self._arrivals = itertools.count()

    @asynccontextmanager
    async def place(self, request: GenerationRequest | PoolingRequest) -> AsyncIterator[Place]:
        """A place in line, and then in the library, as long as the context lasts."""
        seats = request.n if isinstance(request, GenerationRequest) else 1
        place = Place(request.share, (request.priority, next(self._arrivals)), seats, len(request.prompt_ids))
        if request.share is None:
            place.seated.set()
            yield place
            return
        self._counters.weights[request.share] = request.weight
        if request.share not in self._lines:
            self._counters.lift(request.share)
        self._lines.setdefault(request.share, []).append(place)
        self._seat_next()
        try:
            yield place
        finally:
            if place.seated.is_set():
                self._taken[request.share] -= seats
            else:
                self._take_out(request.share, place)
            self._seat_next()

    def count_output(self, share: str | None, tokens: int) -> None:
        """Charge a share for tokens of its outputs, while others wait."""
        if share is not None and self._lines:
            self._counters.charge(share, OUTPUT_COST * tokens)

    def _seat_next(self) -> None:
        """Give the free seats to the first in line, as long as there are enough for it."""
        while self._lines:
            self._counters.note(self._lines)
            firsts = [(share, min(line, key=lambda place: place.order)) for share, line in self._lines.items()]
            share, place = min(firsts, key=self._turn)
            if self._taken.total() and self._taken.total() + place.seats > self._seats:
                return
            self._take_out(share, place)
            self._taken[share] += place.seats
            self._counters.charge(share, place.tokens)
            place.seated.set()
        self._counters.forget()

    def _turn(self, first: tuple[str, Place]) -> tuple[int, float, int, tuple[int, int]]:
        share, place = first
        return place.order[0], self._counters.of(share), self._taken[share], place.order

    def _take_out(self, share: str, place: Place) -> None:
        self._lines[share].remove(place)
        if not self._lines[share]:
            del self._lines[share]
