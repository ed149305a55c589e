"""Prometheus metrics, named as vLLM's. Each app has a registry of its own."""

from collections.abc import Iterator
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from engines.adapters.registry import AdapterRegistry
from engines.engine import Engine
from engines.errors import ContextLengthExceeded, EngineUnavailable, QueueFull, RateLimited
from engines.types import GenerationRequest
from server.metrics.adapters import AdapterMetrics
from server.metrics.engine import EngineCollector
from server.metrics.families import PREFIX, Families
from server.metrics.requests import FIRST_TOKEN_SECONDS, RequestMetrics, Watch

REJECTIONS = {
    QueueFull: "queue_full",
    RateLimited: "rate_limit",
    EngineUnavailable: "unavailable",
    ContextLengthExceeded: "context_length",
}


class Metrics:
    """Everything that is counted while the server runs."""

    def __init__(self, engine: Engine, adapters: AdapterRegistry, *, model_name: str, engine_name: str) -> None:
        self.registry = CollectorRegistry()
        """Every family that the server exposes."""
        families = Families(self.registry, {"model_name": model_name, "engine": engine_name})
        EngineCollector(engine, families)
        self.requests = RequestMetrics(families)
        self._rejected = families.counters(
            "admission_rejections", "Requests that were not taken, by reason.", "reason", tuple(REJECTIONS.values())
        )
        self.adapters = AdapterMetrics(
            adapters,
            self.registry,
            prefix=PREFIX,
            labels=families.labels,
            first_token_seconds=FIRST_TOKEN_SECONDS,
        )
        self._batches = families.counters("batches", "Batches that ended, by status.", "status")
        self._batch_requests = families.counters("batch_requests", "Requests of batches that were answered.", "result")
        self.batches_unfinished = families.gauge("batches_unfinished", "Batches that run or wait.")

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of prompts and of outputs so far."""
        return self.requests.tokens

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        self.adapters.forget_unloaded()
        return generate_latest(_WithoutCreated(self.registry))

    def count_rejection(self, error: Exception) -> None:
        """Count `error` where it means that a request was not taken."""
        reason = next((reason for kind, reason in REJECTIONS.items() if isinstance(error, kind)), None)
        if reason is not None:
            self._rejected.of(reason).inc()

    def count_batch(self, status: str) -> None:
        self._batches.of(status).inc()

    def count_batch_request(self, result: str) -> None:
        self._batch_requests.of(result).inc()

    def count_pooled(self, prompts: list[int], adapter: str | None) -> None:
        """A request for embeddings, classes or scores of prompts of so many tokens was answered."""
        for tokens in prompts:
            self.requests.count_prompt(tokens)
        if adapter is not None:
            counts = self.adapters.of(adapter)
            counts.requests.inc()
            counts.prompt_tokens.inc(sum(prompts))

    def watch(self, request: GenerationRequest) -> AbstractContextManager[Watch]:
        """Measure a request, as `RequestMetrics.watch` says."""
        adapter = None if request.adapter is None else self.adapters.of(request.adapter)
        return self.requests.watch(request, adapter)


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
