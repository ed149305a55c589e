"""Metrics of the engine, which is asked at every scrape."""

from collections import Counter as Multiset
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.engine import Engine
from engines.errors import EngineUnavailable
from engines.types import STEP_SIZES, EngineStats
from server.metrics.families import PREFIX, Families

WAITING_REASONS = ("adapter", "constraint", "prefix", "share")
"""Others wait for capacity."""


class EngineCollector(Collector):
    def __init__(self, engine: Engine, families: Families) -> None:
        self._engine = engine
        self._names, self._values = tuple(families.labels), tuple(families.labels.values())
        self._engine_name = families.labels["engine"]
        families.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        yield self._gauge("num_requests_running", "Requests in the batch.", stats.running)
        yield self._gauge("num_requests_waiting", "Requests that wait for their first step.", stats.waiting)
        yield self._waiting_by_reason(stats)
        yield self._gauge("kv_cache_usage_perc", "Used part of the KV cache, 0 to 1.", stats.kv_cache_usage)
        yield self._counter("prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_cache_queries)
        yield self._counter("prefix_cache_hits", "Prompt tokens found.", stats.prefix_cache_hits)
        yield self._counter("num_preemptions", "Requests put back to make room.", stats.preemptions)
        yield self._by("reason", "engine_restarts", "Starts of the engine after it failed, by reason.", stats.restarts)
        yield self._by("task", "engine_task_failures", "Failures of what watches the engine.", stats.task_failures)
        yield self._by_adapter(
            "adapter_loads", "How often the adapter was copied to where it is computed with.", stats.adapter_loads
        )
        yield self._by_adapter(
            "adapter_evictions", "How often the adapter had to make room there.", stats.adapter_evictions
        )
        yield from self._guesses(stats)
        if stats.step_sizes:
            yield self._step_sizes(stats)
        yield from self._cache_config()

    def _waiting_by_reason(self, stats: EngineStats) -> Metric:
        """Together as many as wait: reasons are counted at other moments than all."""
        name, text = PREFIX + "num_requests_waiting_by_reason", "Requests that wait, by reason."
        family, left = GaugeMetricFamily(name, text, labels=(*self._names, "reason")), stats.waiting
        for reason in WAITING_REASONS:
            count = min(left, stats.waiting_for.get(reason, 0))
            left -= count
            family.add_metric((*self._values, reason), count)
        family.add_metric((*self._values, "capacity"), left)
        return family

    def _step_sizes(self, stats: EngineStats) -> Metric:
        name = PREFIX + "iteration_tokens_total"
        family = HistogramMetricFamily(name, "Tokens that a step computed.", labels=self._names)
        buckets, count = [], 0
        for size in STEP_SIZES:
            count += stats.step_sizes.get(size, 0)
            buckets.append((str(float(size)), count))
        buckets.append(("+Inf", sum(stats.step_sizes.values())))
        family.add_metric(self._values, buckets, stats.step_tokens)
        return family

    def _guesses(self, stats: EngineStats) -> Iterator[Metric]:
        if not stats.spec_drafts:  # nobody asked for any
            return
        accepted = stats.spec_accepted
        yield self._counter("spec_decode_num_drafts", "Guesses at next tokens.", stats.spec_drafts)
        yield self._counter("spec_decode_num_draft_tokens", "Tokens guessed.", stats.spec_draft_tokens)
        yield self._counter("spec_decode_num_accepted_tokens", "Tokens guessed right.", sum(accepted.values()))
        by_place = {str(place): accepted[place] for place in sorted(accepted)}
        yield self._by(
            "position",
            "spec_decode_num_accepted_tokens_per_pos",
            "Tokens guessed right, by place in the guess.",
            by_place,
        )

    def _cache_config(self) -> Iterator[Metric]:
        try:
            config = self._engine.capabilities().cache_config
        except EngineUnavailable:  # it has not started yet
            return
        if config:
            told = {**config, "engine": self._engine_name}
            family = GaugeMetricFamily(PREFIX + "cache_config_info", "The KV cache.", labels=tuple(told))
            family.add_metric(tuple(told.values()), 1)
            yield family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=self._names)
        family.add_metric(self._values, value)
        return family

    def _by_adapter(self, name: str, text: str, by_version: dict[str, int]) -> Metric:
        counts: Multiset[str] = Multiset()
        for version, count in by_version.items():
            counts[version.rpartition("@")[0]] += count
        return self._by("adapter", name, text, counts)

    def _by(self, label: str, name: str, text: str, counts: Mapping[str, int]) -> Metric:
        family = CounterMetricFamily(PREFIX + name, text, labels=(*self._names, label))
        for value, count in counts.items():
            family.add_metric((*self._values, value), count)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(PREFIX + name, text, labels=self._names)
        family.add_metric(self._values, value)
        return family
