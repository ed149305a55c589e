"""Threads for work that would hold up the event loop, in bounded pools: work that fills one leaves the others free."""

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.errors import QueueFull

Given = ParamSpec("Given")
Result = TypeVar("Result")

TEXT_THREADS = 2
"""Few, since a Python thread that computes holds the interpreter's lock, for which the event loop then waits."""
GRAMMAR_PROCESSES = max(1, (os.cpu_count() or 1) // 2)
"""Each thread of the pool waits for a process that checks one grammar."""
GRADER_THREADS = 4
"""They wait for models, and for processes that run Python."""
FILE_THREADS = 8
"""They wait for the disk."""


class Pool:
    """Calls that run in threads of their own, as many at a time as it has workers. Others wait, up to a bound."""

    def __init__(self, name: str, *, workers: int, waiting: int) -> None:
        self.name = name
        self.refused = 0
        """Calls that found the pool full."""
        self._workers = workers
        self._most = workers + waiting
        self._calls = 0
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix=name)

    @property
    def running(self) -> int:
        return min(self._calls, self._workers)

    @property
    def waiting(self) -> int:
        return max(0, self._calls - self._workers)

    async def run(self, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """What the function returns or raises. Raises QueueFull at once where too many calls wait.

        A call that has begun goes on where this is cancelled, and counts until it has ended.
        """
        with self._lock:
            if self._calls >= self._most:
                self.refused += 1
                raise QueueFull(f"The server has too much {self.name} work to do; try again.")
            self._calls += 1
        context = contextvars.copy_context()
        call = self._executor.submit(lambda: context.run(function, *args, **kwargs))
        call.add_done_callback(self._ended)
        return await asyncio.wrap_future(call)

    async def run_long(
        self, long: bool, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """The same where `long`; else call the function here, which is faster than to hand it to a thread."""
        return await self.run(function, *args, **kwargs) if long else function(*args, **kwargs)

    def close(self) -> None:
        """Let running calls end by themselves, and give up waiting ones."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _ended(self, call: Future[Any]) -> None:
        with self._lock:
            self._calls -= 1


class Pools:
    """A pool for each kind of work."""

    def __init__(self) -> None:
        self.text = Pool("text", workers=TEXT_THREADS, waiting=256)
        """Parsing, validating, rendering and tokenizing what requests bring; rendering long answers."""
        self.grammar = Pool("grammar", workers=GRAMMAR_PROCESSES, waiting=16)
        """Checks of grammars that may take seconds."""
        self.graders = Pool("grader", workers=GRADER_THREADS, waiting=64)
        """Graders, which judge an answer."""
        self.files = Pool("file", workers=FILE_THREADS, waiting=512)
        """Reading and writing files that requests upload or ask for."""

    def all(self) -> tuple[Pool, ...]:
        return self.text, self.grammar, self.graders, self.files

    def close(self) -> None:
        for pool in self.all():
            pool.close()


class PoolMetrics(Collector):
    """What each pool does, for Prometheus."""

    def __init__(self, pools: Pools, registry: CollectorRegistry, *, prefix: str) -> None:
        self._pools = pools.all()
        self._prefix = prefix
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        running, waiting = (
            GaugeMetricFamily(f"{self._prefix}pool_{what}", f"Calls that {verb}, by pool.", labels=("pool",))
            for what, verb in (("running", "run"), ("waiting", "wait for a thread"))
        )
        refused = CounterMetricFamily(
            f"{self._prefix}pool_refused",
            "Calls that found their pool full: 429.",
            labels=("pool",),
        )
        for pool in self._pools:
            running.add_metric((pool.name,), pool.running)
            waiting.add_metric((pool.name,), pool.waiting)
            refused.add_metric((pool.name,), pool.refused)
        yield from (running, waiting, refused)
