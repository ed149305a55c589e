"""Fair queueing: which share's turn it is. On a server with keys, a share is a name of keys.

Of the shares that have something to compute the one with the lowest counter is next (`engines/fairness/counters.py`).
One share alone gets everything. Its requests go in order of priority and arrival, as they do within each share.
Priorities go first.

What shares hold is compared as well: where one waits, and the seats or blocks are taken by another that holds the
larger part, that one gives some back. A part is the larger of a share's parts of the seats and of the blocks, divided
by its weight (dominant resource fairness, Ghodsi et al. 2011). The one that waits may not hold more afterwards than the
one that gave, so nothing is ever given back and forth.
"""

from bisect import insort
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest

from engines.fairness.counters import OUTPUT_COST, Counters
from engines.pt.sequences.sequence import Sequence, order_of

RECENT_STEPS = 512
"""Steps for which it is remembered that a share has asked for something."""
SHORT = 4
"""While several shares ask, a step computes at most 1/SHORT of the prompt tokens that it could."""
SAVED_STEPS = 8
"""Steps' worth of tokens that a share which asks for little may be ahead."""


class Queue:
    """The sequences that wait, in a line for each share, and the counters."""

    def __init__(self, *, max_num_batched_tokens: int) -> None:
        self._lines: dict[str | None, list[Sequence]] = {}  # in order of priority and arrival; none is empty
        self.counters = Counters(saved=SAVED_STEPS * max_num_batched_tokens)
        self._max_num_batched_tokens = max_num_batched_tokens
        self._steps = 0
        self._asked: dict[str | None, int] = {}  # share -> the step before which it last asked for something

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Sequence]:
        """All, the first of each share first."""
        rows = zip_longest(*self._lines.values())
        return (sequence for sequence in chain.from_iterable(rows) if sequence is not None)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._lines.get(sequence.share, ())

    def add(self, sequence: Sequence) -> None:
        share = sequence.share
        self._asked[share] = self._steps
        self.counters.weights[share] = sequence.group.request.weight
        if share not in self._lines:
            self._lines[share] = []
            self.counters.lift(share)
        insort(self._lines[share], sequence, key=order_of)

    def remove(self, sequence: Sequence) -> None:
        line = self._lines[sequence.share]
        line.remove(sequence)
        if not line:
            del self._lines[sequence.share]

    def charge(self, sequence: Sequence, length: int) -> None:
        """The next `length` tokens of a sequence are computed. What was computed before, and lost, is free."""
        start, end = max(sequence.charged, sequence.computed), sequence.computed + length
        if end > start:
            prompt = max(0, min(end, sequence.group.num_prompt) - start)
            cost = prompt + OUTPUT_COST * (end - start - prompt)
            self.counters.charge(sequence.share, cost)
            sequence.charged = end

    def room(self, sequence: Sequence, prompt_tokens: int) -> int:
        """How many more prompt tokens a step computes if this sequence's are next; it has `prompt_tokens` already.

        While several shares ask, steps are short, so that who comes does not wait for the end of a long one. What a
        share has saved it may have at once.
        """
        if len(self._asked.keys() | self._lines.keys()) < 2:
            return self._max_num_batched_tokens
        short = max(1, self._max_num_batched_tokens // SHORT) - prompt_tokens
        return max(short, int(self.counters.saved(sequence.share)))

    def has_saved(self, sequence: Sequence) -> bool:
        """Whether this sequence's share is behind the others, as it asks for little."""
        return self.counters.saved(sequence.share) > 0

    def round(self, begun: Iterable[Sequence]) -> "Round":
        """The turns of one step. `begun` are running sequences, in order, whose prompts are to be computed further."""
        self._steps += 1
        self._asked = {share: step for share, step in self._asked.items() if self._steps - step <= RECENT_STEPS}
        turns = Round(self._lines, self.counters, begun)
        self.counters.note(turns.shares)
        return turns


class Round:
    """Sequences one after another, each chosen when it is asked for: what was charged meanwhile counts.

    Within a share those that have begun come before those that wait.
    """

    def __init__(self, lines: dict[str | None, list[Sequence]], counters: Counters, begun: Iterable[Sequence]) -> None:
        self._lines = lines
        self._counters = counters
        self._begun: dict[str | None, deque[Sequence]] = {}
        for sequence in begun:
            self._begun.setdefault(sequence.share, deque()).append(sequence)
        self._passed: Counter[str | None] = Counter()
        self.admits = True
        """Whether waiting sequences are among them."""
        self.taken_from: set[str | None] = set()
        """Shares of which a sequence made way for another's. They do not get back in the same step what they gave."""

    @property
    def shares(self) -> set[str | None]:
        """The shares that have something to compute."""
        return {*self._lines, *self._begun}

    @property
    def has_begun(self) -> bool:
        """Whether begun ones are still to come."""
        return bool(self._begun)

    @property
    def passed(self) -> int:
        """Number of waiting sequences that were passed over."""
        return self._passed.total()

    def next(self) -> Sequence | None:
        """The sequence whose turn it is: the same one again where nothing has been done with it."""
        firsts = [line[0] for line in self._begun.values()]
        if self.admits:
            firsts += [
                line[self._passed[share]]
                for share, line in self._lines.items()
                if share not in self._begun and share not in self.taken_from and self._passed[share] < len(line)
            ]
        return min(firsts, key=self._turn, default=None)

    def _turn(self, sequence: Sequence) -> tuple[int, float, tuple[tuple[int, int], int]]:
        return sequence.group.request.priority, self._counters.of(sequence.share), order_of(sequence)

    def is_begun(self, sequence: Sequence) -> bool:
        """Whether the sequence whose turn it is has begun."""
        return sequence.share in self._begun

    def go_on(self, sequence: Sequence) -> None:
        """This begun sequence has had its turn."""
        line = self._begun[sequence.share]
        line.remove(sequence)
        if not line:
            del self._begun[sequence.share]

    def drop(self, sequence: Sequence) -> None:
        """This sequence does not run any more."""
        if sequence in self._begun.get(sequence.share, ()):
            self.go_on(sequence)

    def pass_over(self, sequence: Sequence) -> None:
        """This waiting sequence has to wait for something of its own: those behind it may go first."""
        self._passed[sequence.share] += 1


@dataclass(frozen=True, slots=True)
class Amount:
    """Seats and blocks: what a share holds, a sequence would take, or the engine has."""

    seats: int
    blocks: int

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.seats + other.seats, self.blocks + other.blocks)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.seats - other.seats, self.blocks - other.blocks)

    def part_of(self, whole: "Amount") -> float:
        return max(self.seats / whole.seats, self.blocks / whole.blocks)


NOTHING = Amount(0, 0)


class Holdings:
    """What each share holds of `whole`."""

    def __init__(self, running: Iterable[Sequence], whole: Amount, weights: Mapping[str | None, float]) -> None:
        self._whole = whole
        self._weights = weights
        self.sequences: dict[str | None, list[Sequence]] = {}
        self._held: dict[str | None, Amount] = {}
        for sequence in sorted(running, key=order_of):
            self.sequences.setdefault(sequence.share, []).append(sequence)
            self._held[sequence.share] = self._held.get(sequence.share, NOTHING) + held_by(sequence)

    def part(self, share: str | None, more: Amount = NOTHING) -> float:
        """The part that a share would hold with so much more."""
        return (self._held.get(share, NOTHING) + more).part_of(self._whole) / self._weights[share]

    def largest(self, shares: Iterable[str | None]) -> str | None:
        """Which of these holds the largest part."""
        return max(shares, key=self.part)

    def victims(self, first: Sequence, short: Amount, need: Amount) -> list[Sequence]:
        """Sequences of larger shares that shall make way for `first`, the latest first, so that `short` is free.

        `need` is what it will hold. None where that would not be enough, or not be fair.
        """
        mine = self.part(first.share, need)
        found: list[Sequence] = []
        while short.seats > 0 or short.blocks > 0:
            others = {share: self._movable(share, first) for share in self.sequences if share != first.share}
            others = {share: sequences for share, sequences in others.items() if sequences}
            if not others:
                return []
            share = self.largest(others)
            victim = others[share][-1]
            freed = held_by(victim)
            if self.part(share, NOTHING - freed) < mine:
                return []
            found.append(victim)
            self.sequences[share].remove(victim)
            self._held[share] -= freed
            short -= freed
        return found

    def _movable(self, share: str | None, first: Sequence) -> list[Sequence]:
        """Beams would lose what they have found, and a higher priority goes first."""
        priority = first.group.request.priority
        return [s for s in self.sequences[share] if s.group.beams is None and s.group.request.priority >= priority]


def held_by(sequence: Sequence) -> Amount:
    return Amount(sequence.num_seqs, len(sequence.blocks))
