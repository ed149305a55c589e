"""Jobs on a database of the test's own, with workers that take milliseconds."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from server.jobs.devices import Devices, FixedDevices
from server.jobs.executor import Executor, LocalExecutor
from server.jobs.hooks import Hooks, NoHooks
from server.jobs.hub import JobHub
from server.jobs.job import Job, JobStatus
from server.jobs.jobs import Jobs, Machine
from server.jobs.metrics import JobMetrics
from server.jobs.store import JobStore
from server.store.access import SERVER
from server.store.database import Database
from server.store.reserve import DiskReserve
from server.tasks import Tasks
from tests.server.states import as_state
from tests.until import PATIENCE
from training.params.task import TASK, Task

LIMITS = {"max_running": 2, "max_queued": 100, "retries": 2, "gpu_memory": 1, "validation_timeout": 60}
WORKER = (sys.executable, "-S", str(Path(__file__).with_name("worker.py")))


def sft_task(**params: Any) -> Task:
    return TASK.validate_python({"task": "sft", "params": {"model": "m", "dataset": ["d.jsonl"], **params}})


class Office:
    """Jobs whose server can stop, or die, and come back."""

    def __init__(
        self,
        folder: Path,
        *,
        hooks: Hooks | None = None,
        executor: Executor | None = None,
        devices: Devices | None = None,
        stop_seconds: float = 5,
        job_hub: Sequence[str] = ("on",),
        reserve: int = 0,
        **limits: Any,
    ) -> None:
        self.folder = folder
        self.hooks = hooks or NoHooks()
        self.job_hub = job_hub
        self.reserve = reserve
        self.limits = LIMITS | limits
        self.machine = Machine(
            executor=executor or LocalExecutor(command=WORKER),
            devices=devices or FixedDevices(),
            back_off_seconds=0.01,
            stop_seconds=stop_seconds,
        )

    async def open(self) -> None:
        self.database = Database(self.folder)
        await self.database.open()
        self.registry = CollectorRegistry()
        metrics = JobMetrics(self.registry, prefix="tuneserve:")
        hub = JobHub(allowed=self.job_hub, cache=self.folder / "hub", max_bytes=1 << 30)
        self.tasks = Tasks(self.registry, prefix="tuneserve:")
        self.jobs = Jobs(
            JobStore(self.database),
            self.folder / "jobs",
            metrics,
            self.machine,
            self.hooks,
            hub,
            self.tasks,
            DiskReserve(self.folder / "jobs", self.reserve),
            **self.limits,
        )
        await self.jobs.open()
        self.tasks.start("jobs", self.jobs.run)

    async def close(self, grace: float = 5) -> None:
        await self.jobs.stop(grace)
        await self.tasks.stop()
        await self.database.close()

    async def create(self, plan: dict[str, Any] | None = None, task: Task | None = None, **values: Any) -> Job:
        async with self.jobs.making() as id:
            (self.jobs.folders.job(id) / "plan.json").write_text(json.dumps(plan or {}))
            return await self.jobs.create(id, task or sft_task(), SERVER, **values)

    async def until(self, job: Job, *statuses: JobStatus, timeout: float = PATIENCE) -> Job:
        """The job once its status is one of these, or once it has ended."""
        async with asyncio.timeout(timeout):
            while True:
                now = await self.jobs.store.get(job.id, SERVER)
                if now.status in statuses or (now.ended and self.jobs._scheduler.run_of(job.id) is None):
                    assert not statuses or now.status in statuses, (now.status, now.error)
                    return now
                await asyncio.sleep(0.01)

    async def until_step(self, job: Job, step: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while step not in await self.steps(job):
                await asyncio.sleep(0.01)

    async def steps(self, job: Job) -> list[int]:
        found: list[Any] = await self.jobs.store.events(job, types=["step"])
        return [each.event.step for each in found]

    async def messages(self, job: Job) -> list[str]:
        found: list[Any] = await self.jobs.store.events(job, types=["message"])
        return [each.event.message for each in found]


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(as_state(tmp_path / "state"))
    await office.open()
    yield office
    await office.close()
