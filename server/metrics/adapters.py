"""Metrics of each adapter, while it is loaded: the label of one that is gone is taken off the registry."""

from collections import Counter as Multiset
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.adapters.registry import AdapterRegistry
from engines.adapters.view import AdapterState

STATES: tuple[AdapterState, ...] = get_args(AdapterState)


@dataclass(frozen=True, slots=True)
class AdapterCounts:
    """What one request counts for its adapter. Once the adapter is gone it counts for nobody."""

    requests: Counter
    prompt_tokens: Counter
    generation_tokens: Counter
    first_token: Histogram


class AdapterMetrics:
    def __init__(
        self,
        adapters: AdapterRegistry,
        registry: CollectorRegistry,
        *,
        prefix: str,
        labels: dict[str, str],
        first_token_seconds: tuple[float, ...],
    ) -> None:
        """The families in `registry`, all of which have `labels` and the adapter's name."""
        names, self._values = (*labels, "adapter"), tuple(labels.values())
        self._adapters = adapters
        self.counted: set[str] = set()
        """Adapters that have series: those that were asked for, and are loaded or were until a moment ago."""
        self._requests = Counter(
            f"{prefix}adapter_requests", "Requests that the adapter answered.", names, registry=registry
        )
        self._prompt_tokens = Counter(
            f"{prefix}adapter_prompt_tokens",
            "Tokens of the prompts that the adapter answered.",
            names,
            registry=registry,
        )
        self._generation_tokens = Counter(
            f"{prefix}adapter_generation_tokens", "Tokens that the adapter generated.", names, registry=registry
        )
        self._first_token = Histogram(
            f"{prefix}adapter_time_to_first_token_seconds",
            "From a request for the adapter to its first token.",
            names,
            registry=registry,
            buckets=first_token_seconds,
        )
        registry.register(_StateCollector(adapters, f"{prefix}adapter_state", names, self._values))

    def of(self, version: str) -> AdapterCounts:
        """Where a request for this version counts. It holds a lease, so the adapter is loaded now."""
        name = version.rpartition("@")[0]
        if name not in self.counted:
            self.forget_unloaded()
            self.counted.add(name)
        values = (*self._values, name)
        return AdapterCounts(
            self._requests.labels(*values),
            self._prompt_tokens.labels(*values),
            self._generation_tokens.labels(*values),
            self._first_token.labels(*values),
        )

    def forget_unloaded(self) -> None:
        gone = self.counted - {adapter.name for adapter in self._adapters.adapters()}
        for name in gone:
            for family in (self._requests, self._prompt_tokens, self._generation_tokens, self._first_token):
                family.remove(*self._values, name)
        self.counted -= gone


class _StateCollector(Collector):
    """Asks the registry at every scrape."""

    def __init__(self, adapters: AdapterRegistry, name: str, labels: tuple[str, ...], values: tuple[str, ...]) -> None:
        self._adapters = adapters
        self._name = name
        self._labels = (*labels, "state")
        self._values = values

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, "Versions of each adapter in each state.", labels=self._labels)
        adapters = self._adapters.adapters()
        versions = Multiset((adapter.name, adapter.state) for adapter in adapters)
        for name in dict.fromkeys(adapter.name for adapter in adapters):
            for state in STATES:
                family.add_metric((*self._values, name, state), versions[name, state])
        yield family
