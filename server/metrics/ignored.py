"""How many answers tell of fields without effect."""

from collections import Counter as Multiset
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class IgnoredMetrics(Collector):
    def __init__(self, registry: CollectorRegistry, *, prefix: str) -> None:
        self._prefix = prefix
        self._answers: Multiset[str] = Multiset()
        registry.register(self)

    def count(self, path: str) -> None:
        """Count an answer of the route with this path."""
        self._answers[path] += 1

    def collect(self) -> Iterator[Metric]:
        answers = CounterMetricFamily(
            f"{self._prefix}requests_with_ignored_fields",
            "Requests with fields that had no effect, by route.",
            labels=["path"],
        )
        for path, count in sorted(self._answers.items()):
            answers.add_metric([path], count)
        yield answers
