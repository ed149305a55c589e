"""Tasks that run as long as the server: one that dies is logged, counted, and started again after a pause."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends
from prometheus_client import CollectorRegistry, Counter

from engines.process.backoff import keep_running
from server.deps import part

log = logging.getLogger(__name__)


class Tasks:
    """The server's background tasks, by name."""

    def __init__(self, registry: CollectorRegistry, *, prefix: str) -> None:
        self._supervisors: dict[str, asyncio.Task[None]] = {}
        self._failures = Counter(
            f"{prefix}task_failures", "Deaths of the server's own tasks.", ("task",), registry=registry
        )

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` until it returns by itself, or until `stop`."""
        assert name not in self._supervisors, name
        self._failures.labels(name)  # 0 until it dies, not missing
        supervising = keep_running(name, work, on_failure=self._count)
        self._supervisors[name] = supervisor = asyncio.create_task(supervising, name=name)
        supervisor.add_done_callback(self._tell_if_dead)

    async def stop(self) -> None:
        supervisors = list(self._supervisors.values())
        self._supervisors.clear()
        for supervisor in supervisors:
            supervisor.cancel()
        await asyncio.gather(*supervisors, return_exceptions=True)

    def dead(self) -> list[str]:
        """Names of the tasks that have died and are not started again."""
        return [name for name, each in self._supervisors.items() if each.done() and _died(each)]

    def failed(self, name: str, error: BaseException, about: str) -> None:
        """Log and count the failure of a task that whoever runs it deals with."""
        self._count(name)
        log.error("%s", about, exc_info=error)

    def _count(self, name: str) -> None:
        self._failures.labels(name).inc()

    def _tell_if_dead(self, supervisor: asyncio.Task[None]) -> None:
        if (name := supervisor.get_name()) in self.dead():
            log.critical("The task %r has ended, and nothing starts it again: start the server again.", name)


TasksDep = Annotated[Tasks, Depends(part(Tasks))]


def _died(task: asyncio.Task[None]) -> bool:
    """Whether it was cancelled or raised an error."""
    return task.cancelled() or task.exception() is not None
