"""Families of metrics, as one server has them: its prefix, and the labels that all of them have."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PREFIX = "tuneserve:"
"""In place of vLLM's `vllm:`."""


@dataclass(frozen=True, slots=True)
class Families:
    """Makes families in `registry`, each with `labels`."""

    registry: CollectorRegistry
    labels: dict[str, str]

    def counter(self, name: str, text: str) -> Counter:
        return Counter(PREFIX + name, text, list(self.labels), registry=self.registry).labels(*self.labels.values())

    def gauge(self, name: str, text: str) -> Gauge:
        return Gauge(PREFIX + name, text, list(self.labels), registry=self.registry).labels(*self.labels.values())

    def histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(PREFIX + name, text, list(self.labels), registry=self.registry, buckets=buckets)
        return family.labels(*self.labels.values())

    def counters(self, name: str, text: str, label: str, values: tuple[str, ...] = ()) -> "Counters":
        """Series by one more label; those of `values` are there from the start, so that a rate can be told of them."""
        counters = Counters(Counter(PREFIX + name, text, [*self.labels, label], registry=self.registry), self.labels)
        for value in values:
            counters.of(value)
        return counters


@dataclass(frozen=True, slots=True)
class Counters:
    family: Counter
    labels: dict[str, str]

    def of(self, value: str) -> Counter:
        return self.family.labels(*self.labels.values(), value)
