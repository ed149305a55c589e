"""How long a step takes, learned from those that were; and how much of a prompt one takes beside running outputs.

A step takes about so long for itself, for each of its rows, for each key that a row sees, and for each key that is
read, however many rows of its sequence see it. Steps of about the same size are remembered as one, whose numbers follow
the latest, and the four times are those with which all sizes come out best: by least squares of relative errors, none
below zero. No such sum is right for every size. So it is followed how many times as long as it says steps of two kinds
take: those of outputs alone, and those with long prompts beside outputs.

So a prompt's share of a step is bounded in time, not in tokens: outputs go on while a long prompt is computed ("Taming
Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", Agrawal et al. 2024, arXiv:2403.02310).
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

LEAST_TOKENS = 4
"""Tokens that a step takes at least: the first of the long prompts never stands still."""
LATEST = 0.1
"""Weight of the latest step among those of its size."""
OF_KIND = 0.2
"""The same among those of its kind."""
TOO_LONG = 2
"""How much more a step beside long prompts weighs if it took longer than was thought: that is the worse mistake."""
MOST_OFF = 1.4
"""By what factor a step may differ from what was thought of its kind, and count: one that was held up says little."""
MOST_OFF_OF_SIZE = 3.0
"""The same of steps of about its size, which are not all alike."""
STEPS_PER_FIT = 16
STEPS_PER_REST = 32
"""So often a step leaves long prompts out, so that what outputs take by themselves stays known."""
MOST_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class Work:
    """What a step computes."""

    rows: int = 0
    seen: int = 0
    """Keys that all rows see, added up."""
    read: int = 0
    """Keys of all sequences."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.rows + other.rows, self.seen + other.seen, self.read + other.read)


NO_WORK = Work()


def work_of(start: int, length: int) -> Work:
    """That of `length` tokens of a sequence, from its token `start` on."""
    return Work(length, length * start + length * (length + 1) // 2, start + length)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a step."""

    step: float
    row: float
    key: float
    read: float = 0.0

    def seconds(self, work: Work) -> float:
        return self.of(work.rows, work.seen, work.read)

    def of(self, rows: float, seen: float, read: float) -> float:
        return self.step + self.row * rows + self.key * seen + self.read * read


class Kind(Enum):
    QUIET = auto()
    """Steps of outputs alone."""
    BESIDE = auto()
    """Steps of long prompts beside outputs."""
    OTHER = auto()


@dataclass(slots=True)
class _Mean:
    """What some steps were on average; the latest counts most."""

    rows: float = 0.0
    seen: float = 0.0
    read: float = 0.0
    seconds: float = 0.0
    steps: int = 0

    def add(self, work: Work, seconds: float, weight: float) -> None:
        self.steps += 1
        weight = max(weight, 1 / self.steps)
        self.rows += weight * (work.rows - self.rows)
        self.seen += weight * (work.seen - self.seen)
        self.read += weight * (work.read - self.read)
        self.seconds += weight * (seconds - self.seconds)

    def per_second(self) -> tuple[float, ...]:
        return tuple(value / self.seconds for value in (1.0, self.rows, self.seen, self.read))


class Pace:
    """The cost of a step, from those that were, and what follows for the next."""

    def __init__(self, slowdown: float) -> None:
        """`slowdown`: how many times as long a step may take with prompts as without."""
        self._slowdown = slowdown
        self._sizes: dict[tuple[int, int], _Mean] = {}
        self._kinds = {kind: _Mean() for kind in Kind}
        self._steps = 0
        self._since_rest = 0
        self.cost: Cost | None = None
        """None: not known yet."""

    def note(self, work: Work, seconds: float, kind: Kind = Kind.OTHER) -> None:
        """A step has taken so long."""
        self._since_rest = self._since_rest + 1 if kind is Kind.BESIDE else 0
        size = self._sizes.setdefault((work.rows.bit_length(), work.seen.bit_length()), _Mean())
        size.add(work, min(seconds, MOST_OFF_OF_SIZE * size.seconds) if size.steps else seconds, LATEST)
        self._steps += 1
        if (size.steps == 1 or self._steps % STEPS_PER_FIT == 0) and len({rows for rows, _ in self._sizes}) > 1:
            self.cost = Cost(*_least_squares(mean.per_second() for mean in self._sizes.values() if mean.seconds > 0))
        self._follow(self._kinds[kind], work, seconds, kind)

    def _follow(self, mean: "_Mean", work: Work, seconds: float, kind: Kind) -> None:
        weight = OF_KIND
        if self.cost is not None:
            thought = self._off(kind) * self.cost.seconds(work)
            if kind is Kind.BESIDE and seconds > thought:
                weight *= TOO_LONG
            if thought > 0:
                seconds = min(max(seconds, thought / MOST_OFF), thought * MOST_OFF)
        mean.add(work, seconds, weight)

    def _off(self, kind: Kind) -> float:
        """How many times as long as `cost` says steps of a kind take."""
        mean = self._kinds[kind]
        thought = 0.0 if self.cost is None else self.cost.of(mean.rows, mean.seen, mean.read)
        return mean.seconds / thought if mean.seconds > 0 and thought > 0 else 1.0

    def room(self, outputs: Work, prompts: Work, start: int) -> int | None:
        """How many tokens of a prompt, from its token `start` on, a step takes beside running outputs. None: as many
        as there are.

        `outputs`, `prompts`: what the step has already, the latter of long prompts.
        """
        cost = self.cost
        if cost is None or not outputs.rows:
            return None
        if self._since_rest >= STEPS_PER_REST:
            return 0
        before = outputs + prompts
        limit = self._slowdown * cost.seconds(outputs) * self._off(Kind.QUIET) / self._off(Kind.BESIDE)

        def seconds(tokens: int) -> float:
            return cost.seconds(before + work_of(start, tokens))

        if seconds(MOST_TOKENS) <= limit:
            return None
        least = 0 if prompts.rows else LEAST_TOKENS
        return max(least, bisect_right(range(1, MOST_TOKENS), limit, key=seconds))


def _least_squares(rows: Iterable[Sequence[float]], rounds: int = 100) -> list[float]:
    """The x, none of it below zero, for which each row times x is nearest to 1: coordinate descent."""
    rows = list(rows)
    places = range(len(rows[0]))
    scales = [math.sqrt(sum(row[i] ** 2 for row in rows)) or 1.0 for i in places]
    scaled = [[value / scale for value, scale in zip(row, scales, strict=True)] for row in rows]
    gram = [[sum(row[i] * row[j] for row in scaled) for j in places] for i in places]
    sums = [sum(row[i] for row in scaled) for i in places]
    x = [0.0 for _ in places]
    for _ in range(rounds):
        for i in places:
            rest = sum(gram[i][j] * x[j] for j in places if j != i)
            x[i] = max(0.0, (sums[i] - rest) / gram[i][i]) if gram[i][i] else 0.0
    return [value / scale for value, scale in zip(x, scales, strict=True)]
