"""Metrics of connections: how many are open, and why some were ended."""

from collections import Counter as Multiset
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.errors import TuneserveError


class ConnectionMetrics(Collector):
    def __init__(self, registry: CollectorRegistry, *, prefix: str, count_open: Callable[[], int]) -> None:
        self._prefix = prefix
        self._count_open = count_open
        self._ended: Multiset[str] = Multiset()
        registry.register(self)

    def count_ended(self, error: TuneserveError) -> None:
        """Count a connection that was ended for this."""
        self._ended[error.code or ""] += 1

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(f"{self._prefix}connections", "Open connections.", value=self._count_open())
        ended = CounterMetricFamily(
            f"{self._prefix}connections_ended", "Connections that the server ended, by reason.", labels=["reason"]
        )
        for reason, count in sorted(self._ended.items()):
            ended.add_metric([reason], count)
        yield ended
