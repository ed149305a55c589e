"""What runs as long as the server dies of a bug or of its database, and is started again; nothing hangs for ever."""

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from server.tasks import Tasks
from tests.server.client import ReadyClient, echo_client
from tests.server.process import Kept, ServerProcess
from tests.until import async_until, until

LINE = json.dumps(
    {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "echo", "messages": [{"role": "user", "content": "hi"}]},
    }
).encode()


# ---- one task


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def tasks(registry: CollectorRegistry) -> AsyncIterator[Tasks]:
    tasks = Tasks(registry, prefix="tuneserve:")
    yield tasks
    await tasks.stop()


def failures(registry: CollectorRegistry, task: str) -> float | None:
    return registry.get_sample_value("tuneserve:task_failures_total", {"task": task})


async def test_a_task_that_dies_is_named_counted_and_started_again(
    tasks: Tasks, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    begun = []

    async def work() -> None:
        begun.append(1)
        if len(begun) < 3:
            raise RuntimeError("a bug")

    tasks.start("sweeping", work)
    assert failures(registry, "sweeping") == 0
    await async_until(lambda: len(begun) == 3)
    assert failures(registry, "sweeping") == 2
    assert caplog.text.count("RuntimeError: a bug") == 2
    assert "'sweeping'" in caplog.text
    assert tasks.dead() == []


async def test_a_task_that_awaits_what_is_cancelled_is_started_again(tasks: Tasks, registry: CollectorRegistry) -> None:
    begun = []

    async def work() -> None:
        begun.append(1)
        if len(begun) == 1:
            gone = asyncio.get_running_loop().create_future()
            gone.cancel()
            await gone
        await asyncio.sleep(3600)

    tasks.start("sweeping", work)
    await async_until(lambda: len(begun) == 2)
    assert (failures(registry, "sweeping"), tasks.dead()) == (1, [])


async def test_stopped_tasks_have_ended_and_are_not_dead(tasks: Tasks) -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    tasks.start("sweeping", work)
    await asyncio.sleep(0)
    await tasks.stop()
    assert ended.is_set() and tasks.dead() == []


# ---- those of a server


def test_health_says_when_nothing_starts_a_task_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with echo_client(state_dir=str(tmp_path)) as client:
        assert client.get("/health").status_code == 200
        end_supervisor(client, "batches")
        reply = client.get("/health")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "tasks_dead")
        assert "batches" in reply.json()["error"]["message"]
    assert "'batches' has ended, and nothing starts it again" in caplog.text


def end_supervisor(client: ReadyClient, name: str) -> None:
    supervisor = client.parts[Tasks]._supervisors[name]

    async def end() -> None:
        supervisor.cancel()
        await asyncio.wait({supervisor})

    assert client.portal is not None
    client.portal.call(end)


class Stored(Kept):
    """A server whose database another program disturbs."""

    @contextlib.contextmanager
    def broken(self, change: str, table: str) -> Iterator[None]:
        """`change` of `table` fails within the block, with an error that nobody foresees."""
        trigger = f"CREATE TRIGGER broken BEFORE {change} ON {table} BEGIN SELECT RAISE(ABORT, 'broken'); END"
        self.execute(trigger)
        yield
        self.execute("DROP TRIGGER broken")

    def execute(self, statement: str, *values: Any) -> list[Any]:
        path = self.folder / "store" / "tuneserve.sqlite3"
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as database, database:
            return database.execute(statement, values).fetchall()

    def failures(self, task: str) -> float:
        lines = httpx.get(f"{self.server.url}/metrics").text.splitlines()
        [value] = [
            line.split()[-1] for line in lines if line.startswith(f'tuneserve:task_failures_total{{task="{task}"}}')
        ]
        return float(value)

    def upload(self, content: bytes = LINE) -> str:
        return self.client.files.create(file=("input.jsonl", content), purpose="batch").id

    def create_batch(self) -> str:
        file = self.upload()
        made = self.client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
        return made.id

    def batch(self, id: str) -> str:
        return self.client.batches.retrieve(id).status


@pytest.fixture
def start(start_echo: Callable[..., ServerProcess], tmp_path: Path) -> Callable[..., Stored]:
    def start(**settings: Any) -> Stored:
        params = {"state_dir": str(tmp_path), "verbose": False, **settings.pop("params", {})}
        server = start_echo(params=params, **settings)
        until(server.is_ready)
        return Stored(server, tmp_path)

    return start


def test_expired_files_go_once_the_database_lets_them(start: Callable[..., Stored]) -> None:
    api = start()
    file = api.upload()
    api.server.close()
    api.execute("UPDATE files SET expires_at = ?", int(time.time()) - 1)
    with api.broken("DELETE", "files"):
        api = start()
        until(lambda: api.failures("file_expiry") >= 1, told=lambda: "".join(api.server.log))
        assert httpx.get(f"{api.server.url}/health").status_code == 200
        assert [path.name for path in api.folder.glob("files/*/*")] == [file]
    until(lambda: not list(api.folder.glob("files/*/*")))
    until(lambda: "the task 'file_expiry' failed" in "".join(api.server.log))


def test_a_batch_that_its_database_refuses_fails_once_that_can_be_written(start: Callable[..., Stored]) -> None:
    api = start(retry_seconds=0.1)
    with api.broken("UPDATE", "batches"):
        batch = api.create_batch()
        until(lambda: api.failures("batch") >= 1)
        assert api.batch(batch) == "validating"
    until(lambda: api.batch(batch) == "failed")
    assert api.client.batches.retrieve(batch).errors.data[0].code == "internal_error"
    until(lambda: not list(api.folder.glob("batches/*/*")))
    after = api.create_batch()
    until(lambda: api.batch(after) == "completed")
