"""How long a step takes, learned from those that were; and how much of a prompt one takes beside running outputs.

A step takes about so long for itself, for each of its rows, and for each key that a row sees. Steps of about the same
size are remembered as one, whose numbers follow the latest, and the three times are those with which all sizes come out
best: by least squares of relative errors, none below zero. So a prompt's share of a step is bounded in time, not in
tokens: outputs go on while a long prompt is computed ("Taming Throughput-Latency Tradeoff in LLM Inference with
Sarathi-Serve", Agrawal et al. 2024, arXiv:2403.02310).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

LEAST_TOKENS = 4
"""Tokens that a step takes at least: the first of the long prompts never stands still."""
LATEST = 0.1
"""Weight of the latest step among those of its size."""
STEPS_PER_FIT = 16


@dataclass(frozen=True, slots=True)
class Work:
    """What a step computes."""

    rows: int = 0
    seen: int = 0
    """Keys that all rows see, added up."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.rows + other.rows, self.seen + other.seen)


NO_WORK = Work()


def work_of(start: int, length: int) -> Work:
    """That of `length` tokens of a sequence, from its token `start` on."""
    return Work(length, length * start + length * (length + 1) // 2)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a step."""

    step: float
    row: float
    key: float

    def seconds(self, work: Work) -> float:
        return self.step + self.row * work.rows + self.key * work.seen


class Pace:
    """The cost of a step, from those that were, and what follows for the next."""

    def __init__(self, slowdown: float) -> None:
        """`slowdown`: how many times as long a step may take with prompts as without."""
        self._slowdown = slowdown
        self._sizes: dict[tuple[int, int], list[float]] = {}  # means of a size: rows, keys, seconds
        self._steps = 0
        self.cost: Cost | None = None
        """None: not known yet."""

    def note(self, work: Work, seconds: float) -> None:
        """A step has taken so long."""
        size = (work.rows.bit_length(), work.seen.bit_length())
        latest = [work.rows, work.seen, seconds]
        means = self._sizes.get(size)
        self._sizes[size] = [m + LATEST * (x - m) for m, x in zip(means or latest, latest, strict=True)]
        self._steps += 1
        if (means is None or self._steps % STEPS_PER_FIT == 0) and len({rows for rows, _ in self._sizes}) > 1:
            relative = [(1 / t, rows / t, keys / t) for rows, keys, t in self._sizes.values() if t > 0]
            self.cost = Cost(*_least_squares(relative))

    def room(self, outputs: Work, prompts: Work, start: int) -> int | None:
        """How many tokens of a prompt, from its token `start` on, a step takes beside running outputs. None: as many
        as there are.

        `outputs`, `prompts`: what the step has already, the latter of long prompts.
        """
        cost = self.cost
        if cost is None or not outputs.rows:
            return None
        left = self._slowdown * cost.seconds(outputs) - cost.seconds(outputs + prompts)
        least = 0 if prompts.rows else LEAST_TOKENS
        if left <= 0:
            return least
        # n tokens take n * (row + key * start) + n^2 / 2 * key.
        linear = cost.row + cost.key * start
        root = linear + math.sqrt(linear**2 + 2 * cost.key * left)
        return max(least, int(2 * left / root)) if root else None


def _least_squares(rows: Iterable[tuple[float, float, float]], rounds: int = 50) -> list[float]:
    """The x, none of it below zero, for which each row times x is nearest to 1: coordinate descent."""
    rows = list(rows)
    scales = [math.sqrt(sum(row[i] ** 2 for row in rows)) or 1.0 for i in range(3)]
    scaled = [[value / scale for value, scale in zip(row, scales, strict=True)] for row in rows]
    gram = [[sum(row[i] * row[j] for row in scaled) for j in range(3)] for i in range(3)]
    sums = [sum(row[i] for row in scaled) for i in range(3)]
    x = [0.0, 0.0, 0.0]
    for _ in range(rounds):
        for i in range(3):
            rest = sum(gram[i][j] * x[j] for j in range(3) if j != i)
            x[i] = max(0.0, (sums[i] - rest) / gram[i][i]) if gram[i][i] else 0.0
    return [value / scale for value, scale in zip(x, scales, strict=True)]
