"""Metrics of every single token, of which there are thousands a second: counted without the locks of Prometheus' own,
in the event loop's thread, and put into its form when it asks."""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from server.metrics.families import PREFIX, Families

TOKEN_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)


class TokenMetrics(Collector):
    def __init__(self, families: Families) -> None:
        self.generated = 0
        """Tokens of outputs so far."""
        self._counts = [0] * (len(TOKEN_SECONDS) + 1)  # of gaps, by the first bound that holds them
        self._seconds = 0.0  # of all gaps together
        self._labels = families.labels
        families.registry.register(self)

    def count_gap(self, seconds: float, tokens: int) -> None:
        """Tokens that came `seconds` after the one before them, in one step."""
        self._counts[bisect_left(TOKEN_SECONDS, seconds / tokens)] += tokens
        self._seconds += seconds

    def collect(self) -> Iterator[Metric]:
        names, values = list(self._labels), list(self._labels.values())
        generated = CounterMetricFamily(f"{PREFIX}generation_tokens", "Tokens that were generated.", labels=names)
        generated.add_metric(values, self.generated)
        yield generated
        gaps = HistogramMetricFamily(
            f"{PREFIX}inter_token_latency_seconds", "Between two tokens of one output.", labels=names
        )
        bounds = map(floatToGoString, (*TOKEN_SECONDS, float("inf")))
        gaps.add_metric(values, list(zip(bounds, accumulate(self._counts), strict=True)), self._seconds)
        yield gaps
