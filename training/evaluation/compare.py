"""Two models on the same questions: which is better, and how sure that is.

Questions differ in difficulty far more than models do, so that the answers to one and the same question are compared:
by McNemar's exact test where an answer is right or wrong (McNemar 1947, Psychometrika 12), by a bootstrap of the
differences where it has a score (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 16).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.errors import InvalidRequest

RESAMPLES = 10_000
Value = float | tuple[float, float]
"""Of one question: a score, or a sum with its weight, such as a text's log-likelihood and its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of one benchmark, of this model and of another."""

    task: str
    metric: str
    value: float
    other: float
    """What the other model has."""
    low: float
    high: float
    """The difference `value - other` lies between them, with 95%."""
    p: float
    """How likely a difference as large would be, were the two equally good."""
    test: str
    questions: int
    higher_is_better: bool = True

    @property
    def better(self) -> bool | None:
        """Whether this model is the better one; None: that cannot be told, at 5%."""
        if self.p >= 0.05:
            return None
        return (self.value > self.other) == self.higher_is_better

    def metrics(self) -> list[tuple[str, float]]:
        """What a job's metrics have of it."""
        return [("compared", self.other), ("p", self.p)]


def compare(
    task: str, metric: str, mine: Mapping[str, Value], other: Mapping[str, Value], *, higher_is_better: bool, seed: int
) -> Difference:
    """The values of two models by question. Raises InvalidRequest where they were asked other questions."""
    if mine.keys() != other.keys():
        message = f"{task} had other questions there: only the same can be compared, with the same eval_limit"
        raise InvalidRequest(message, param="compare")
    pairs = [(mine[key], other[key]) for key in sorted(mine)]
    ones, twos = ([_plain(value) for value in side] for side in zip(*pairs, strict=True))
    low, high, p = _bootstrap(ones, twos, seed)
    test = "paired bootstrap"
    if all(weight == 1 and value in (0, 1) for value, weight in (*ones, *twos)):
        test, p = "McNemar", mcnemar([value for value, _ in ones], [value for value, _ in twos])
    return Difference(
        task=task,
        metric=metric,
        value=_mean(ones),
        other=_mean(twos),
        low=low,
        high=high,
        p=p,
        test=test,
        questions=len(pairs),
        higher_is_better=higher_is_better,
    )


def mcnemar(ones: Sequence[float], twos: Sequence[float]) -> float:
    """The exact two-sided p of as uneven a split of the questions that only one of the two got right."""
    only_one = sum(one > two for one, two in zip(ones, twos, strict=True))
    only_two = sum(two > one for one, two in zip(ones, twos, strict=True))
    count, fewer = only_one + only_two, min(only_one, only_two)
    if not count:
        return 1.0
    tail = sum(math.exp(_log_choose(count, k) - count * math.log(2)) for k in range(fewer + 1))
    return min(1.0, 2 * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _bootstrap(
    ones: Sequence[tuple[float, float]], twos: Sequence[tuple[float, float]], seed: int
) -> tuple[float, float, float]:
    """The 2.5th and 97.5th percentile of the difference over resamples of the questions, and its two-sided p."""
    random = np.random.default_rng(seed)
    first, second = np.array(ones), np.array(twos)
    found = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = random.integers(0, len(first), len(first))
        a, b = first[drawn].sum(0), second[drawn].sum(0)
        found[number] = a[0] / a[1] - b[0] / b[1]
    below, above = float((found <= 0).mean()), float((found >= 0).mean())
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high), min(1.0, 2 * max(min(below, above), 1 / RESAMPLES))


def _mean(values: Sequence[tuple[float, float]]) -> float:
    return sum(value for value, _ in values) / sum(weight for _, weight in values)


def _plain(value: Value) -> tuple[float, float]:
    if isinstance(value, tuple | list):
        return float(value[0]), float(value[1])
    return float(value), 1.0


def values_of(samples: Sequence[Mapping[str, Any]], metric: str, filter: str) -> dict[str, Value]:
    """Question -> its value, of the samples that the harness logs."""
    return {
        f"{sample['doc_id']}-{sample['doc_hash']}": sample[metric]
        for sample in samples
        if sample.get("filter", "none") == filter and metric in sample
    }
