"""Prometheus metrics, named as vLLM's. Each app has a registry of its own."""

import time
from collections import Counter as Multiset
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.adapters.registry import AdapterRegistry
from engines.engine import Engine
from engines.errors import ContextLengthExceeded, EngineUnavailable, QueueFull, RateLimited, TuneserveError
from engines.types import BATCH_PRIORITY, FinishReason, GenerationRequest, TokenOutput
from server.metrics.adapters import AdapterMetrics

PREFIX = "tuneserve:"
LABELS = ("model_name", "engine")
REJECTIONS = {
    QueueFull: "queue_full",
    RateLimited: "rate_limit",
    EngineUnavailable: "unavailable",
    ContextLengthExceeded: "context_length",
}
FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
TOKEN_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)
REQUEST_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)


class Metrics:
    """Everything that is counted while the server runs."""

    def __init__(self, engine: Engine, adapters: AdapterRegistry, *, model_name: str, engine_name: str) -> None:
        self._values = (model_name, engine_name)
        self.registry = CollectorRegistry()
        """Every family that the server exposes."""
        self.registry.register(_EngineCollector(engine, self._values))
        self._finished = self._family("request_success", "Outputs that ended, by reason.", "finished_reason")
        self._rejected = self._family("admission_rejections", "Requests that were not taken, by reason.", "reason")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of the prompts that were answered.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens that were generated.")
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From the request to its first token.", FIRST_TOKEN_SECONDS
        )
        self.inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of one output.", TOKEN_SECONDS
        )
        self.end_to_end = self._histogram(
            "e2e_request_latency_seconds", "From the request to its last token.", REQUEST_SECONDS
        )
        self.queue = self._histogram(
            "request_queue_time_seconds", "From the request to its first step.", FIRST_TOKEN_SECONDS
        )
        self.adapters = AdapterMetrics(
            adapters,
            self.registry,
            prefix=PREFIX,
            labels=dict(zip(LABELS, self._values, strict=True)),
            first_token_seconds=FIRST_TOKEN_SECONDS,
        )
        self._batches = self._family("batches", "Batches that ended, by status.", "status")
        self._batch_requests = self._family("batch_requests", "Requests of batches that were answered.", "result")
        self.batches_unfinished = Gauge(
            PREFIX + "batches_unfinished", "Batches that run or wait.", LABELS, registry=self.registry
        ).labels(*self._values)
        self.tokens = (0, 0)
        """Tokens of prompts and of outputs so far."""

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        self.adapters.forget_unloaded()
        return generate_latest(_WithoutCreated(self.registry))

    def count_rejection(self, error: Exception) -> None:
        """Count `error` where it means that a request was not taken."""
        reason = next((reason for kind, reason in REJECTIONS.items() if isinstance(error, kind)), None)
        if reason is not None:
            self._rejected.labels(*self._values, reason).inc()

    def count_finished(self, reason: str) -> None:
        self._finished.labels(*self._values, reason).inc()

    def count_tokens(self, *, prompt: int = 0, generated: int = 0) -> None:
        if prompt:
            self._prompt_tokens.inc(prompt)
        if generated:
            self._generation_tokens.inc(generated)
        self.tokens = (self.tokens[0] + prompt, self.tokens[1] + generated)

    def count_batch(self, status: str) -> None:
        self._batches.labels(*self._values, status).inc()

    def count_batch_request(self, result: str) -> None:
        self._batch_requests.labels(*self._values, result).inc()

    def count_embeddings(self, prompt_tokens: int, adapter: str | None) -> None:
        """A request for embeddings was answered."""
        self.count_tokens(prompt=prompt_tokens)
        if adapter is not None:
            counts = self.adapters.of(adapter)
            counts.requests.inc()
            counts.prompt_tokens.inc(prompt_tokens)

    @contextmanager
    def watch(self, request: GenerationRequest) -> "Iterator[Watch]":
        """Measure a request from here to the end of the block, which shows each output to `see`.

        Outputs that are still open when the engine ends by itself were finished from above, by a stop string. Those
        that are open when the block is left early were aborted.
        """
        watch = Watch(self, request)
        how_the_rest_ended = "abort"
        try:
            yield watch
            how_the_rest_ended = "stop"
        except TuneserveError:
            how_the_rest_ended = "abort" if watch.aborted else "error"
            raise
        finally:
            watch.end(how_the_rest_ended)

    def _family(self, name: str, text: str, label: str) -> Counter:
        return Counter(PREFIX + name, text, (*LABELS, label), registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(PREFIX + name, text, LABELS, registry=self.registry).labels(*self._values)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, text, LABELS, registry=self.registry, buckets=buckets).labels(*self._values)


class Watch:
    """One request, measured. How long one of a batch takes says nothing about how long others wait: it is left out."""

    def __init__(self, metrics: Metrics, request: GenerationRequest) -> None:
        self._metrics = metrics
        self._request = request
        self._adapter = None if request.adapter is None else metrics.adapters.of(request.adapter)
        self._timed = request.priority < BATCH_PRIORITY
        self._began = time.perf_counter()
        self._last_token: dict[int, float] = {}  # of each output
        self._unfinished = request.n
        self.aborted = False
        """The engine gave an output up."""

    def see(self, output: TokenOutput) -> None:
        now = time.perf_counter()
        if not self._last_token:
            self._metrics.count_tokens(prompt=len(self._request.prompt_ids))
            if self._adapter is not None:
                self._adapter.requests.inc()
                self._adapter.prompt_tokens.inc(len(self._request.prompt_ids))
            if self._timed:
                self._time_first(output, now - self._began)
        elif self._timed and output.index in self._last_token and output.token_ids:
            step = (now - self._last_token[output.index]) / len(output.token_ids)
            for _ in output.token_ids:
                self._metrics.inter_token.observe(step)
        self._last_token[output.index] = now
        self._metrics.count_tokens(generated=len(output.token_ids))
        if self._adapter is not None:
            self._adapter.generation_tokens.inc(len(output.token_ids))
        if output.finish_reason is not None:
            self._unfinished -= 1
            self.aborted |= output.finish_reason is FinishReason.ABORT
            self._metrics.count_finished(output.finish_reason)

    def _time_first(self, output: TokenOutput, seconds: float) -> None:
        self._metrics.first_token.observe(seconds)
        if self._adapter is not None:
            self._adapter.first_token.observe(seconds)
        if output.queue_seconds is not None:
            self._metrics.queue.observe(output.queue_seconds)

    def end(self, how_the_rest_ended: str) -> None:
        """The request is over; one that failed before its first token was never taken."""
        if how_the_rest_ended == "error" and not self._last_token:
            return
        if self._timed:
            self._metrics.end_to_end.observe(time.perf_counter() - self._began)
        for _ in range(self._unfinished):
            self._metrics.count_finished(how_the_rest_ended)


class _WithoutCreated(Collector):
    """What another collects, without the time at which each series began: it would nearly double their number.

    The library's own switch for it holds for the whole process.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterator[Metric]:
        for metric in self._collector.collect():  # made anew each time
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _EngineCollector(Collector):
    """Asks the engine at every scrape."""

    def __init__(self, engine: Engine, values: tuple[str, str]) -> None:
        self._engine = engine
        self._values = values

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        yield self._gauge("num_requests_running", "Requests in the batch.", stats.running)
        yield self._gauge("num_requests_waiting", "Requests that wait for their first step.", stats.waiting)
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

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=LABELS)
        family.add_metric(self._values, value)
        return family

    def _by_adapter(self, name: str, text: str, by_version: dict[str, int]) -> Metric:
        counts: Multiset[str] = Multiset()
        for version, count in by_version.items():
            counts[version.rpartition("@")[0]] += count
        return self._by("adapter", name, text, counts)

    def _by(self, label: str, name: str, text: str, counts: Mapping[str, int]) -> Metric:
        family = CounterMetricFamily(PREFIX + name, text, labels=(*LABELS, label))
        for value, count in counts.items():
            family.add_metric((*self._values, value), count)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(PREFIX + name, text, labels=LABELS)
        family.add_metric(self._values, value)
        return family
