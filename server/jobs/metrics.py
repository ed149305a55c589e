"""Metrics of jobs, for Prometheus."""

import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.jobs.job import Job
from training.folder import Step

QUEUE_SECONDS = (0.1, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
DURATION_SECONDS = (5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600)


class JobMetrics:
    def __init__(self, registry: CollectorRegistry, *, prefix: str) -> None:
        self.counts: Mapping[tuple[str, str], int] = {}
        """How many jobs there are of each type and status, as of the last look."""
        registry.register(_CountCollector(self, f"{prefix}jobs"))
        self._step = Gauge(f"{prefix}job_step", "The last step of a running job.", ("job",), registry=registry)
        self._loss = Gauge(f"{prefix}job_loss", "The loss of that step.", ("job",), registry=registry)
        self._queue = Histogram(
            f"{prefix}job_queue_seconds",
            "From the queue to the worker's start.",
            ("type",),
            registry=registry,
            buckets=QUEUE_SECONDS,
        )
        self._duration = Histogram(
            f"{prefix}job_duration_seconds",
            "From the first worker's start to the job's end.",
            ("type", "status"),
            registry=registry,
            buckets=DURATION_SECONDS,
        )

    def began(self, job: Job) -> None:
        if job.attempt == 1 and job.queued_at is not None:
            self._queue.labels(job.type).observe(max(0.0, time.time() - job.queued_at))

    def stepped(self, job: Job, step: Step) -> None:
        self._step.labels(job.id).set(step.step)
        if "loss" in step.metrics:
            self._loss.labels(job.id).set(step.metrics["loss"])

    def forget(self, job: Job) -> None:
        """It does not run any more."""
        for family in (self._step, self._loss):
            family.remove_by_labels({"job": job.id})

    def ended(self, job: Job) -> None:
        if job.started_at is not None and job.finished_at is not None:
            self._duration.labels(job.type, job.status).observe(job.finished_at - job.started_at)


class _CountCollector(Collector):
    def __init__(self, metrics: JobMetrics, name: str) -> None:
        self._metrics = metrics
        self._name = name

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, "Jobs, by type and status.", labels=("type", "status"))
        for labels, count in self._metrics.counts.items():
            family.add_metric(labels, count)
        yield family
