"""Metrics of keys, by name. Only names of keys that exist become labels, whatever clients send."""

from collections import Counter as Multiset
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.errors import TuneserveError

FAILURES = ("invalid_api_key", "insufficient_permissions")
"""The codes of the errors that a request is refused with for its key."""


class KeyMetrics(Collector):
    def __init__(self, registry: CollectorRegistry, *, prefix: str, names: Callable[[], Iterable[str]]) -> None:
        """`names` tells the names of all keys, which change while the server runs."""
        self._prefix = prefix
        self._names = names
        self._requests: Multiset[str] = Multiset()
        self._failures: Multiset[str] = Multiset()
        registry.register(self)

    def count_request(self, name: str | None) -> None:
        """Count a request with a key of this name, whether it was answered or refused."""
        if name is not None:
            self._requests[name] += 1

    def count_failure(self, error: TuneserveError) -> None:
        """Count a request that was refused for its key."""
        if error.code is not None:
            self._failures[error.code] += 1

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            f"{self._prefix}key_requests", "Requests, by the name of the key.", labels=["key"]
        )
        for name in sorted(self._names()):
            requests.add_metric([name], self._requests[name])
        yield requests
        failures = CounterMetricFamily(
            f"{self._prefix}auth_failures", "Requests refused for their key.", labels=["code"]
        )
        for code in FAILURES:
            failures.add_metric([code], self._failures[code])
        yield failures
