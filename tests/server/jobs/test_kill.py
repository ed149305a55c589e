"""kill -9 of the worker, of the server and of both, wherever they are: the job goes on and ends as it would have."""

import contextlib
import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.jobs.processes import MARK
from tests.forks import Fork, preload
from tests.processes import command_of, ended, whose_commands_have
from tests.server.process import ROOT, environment
from tests.server.states import as_state
from tests.until import PATIENCE, until

STEPS = 24
PLAN = {"steps": STEPS, "seconds": 0.03, "save_every": 3, "children": True}
OFFICE = "tests.server.jobs.office"
preload(OFFICE, "alembic.context")


class Server:
    """Runs from construction on; what it keeps is in `folder`."""

    def __init__(self, folder: Path, plan: dict[str, Any] | None = None) -> None:
        self.folder = folder
        words = [str(as_state(folder))] if plan is None else [str(as_state(folder)), json.dumps(plan)]
        self.process = Fork(OFFICE, words, str(ROOT), environment())
        assert "open\n" in iter(self.process.stderr.readline, "")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def job(self) -> dict[str, Any]:
        return self.rows("SELECT * FROM jobs")[0]

    def steps(self) -> list[int]:
        return [row["step"] for row in self.rows("SELECT step FROM job_events WHERE type = 'step' ORDER BY number")]

    def rows(self, query: str) -> list[dict[str, Any]]:
        with contextlib.closing(sqlite3.connect(self.folder / "store" / "tuneserve.sqlite3", timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query)]

    def until(self, status: str) -> dict[str, Any]:
        job = until(lambda: job if (job := self.job())["status"] in (status, "failed") else None, told=self.job)
        assert job["status"] == status, job
        return job

    def until_step(self, step: int) -> None:
        until(lambda: step in self.steps())


def of_jobs(folder: Path) -> Iterator[psutil.Process]:
    """The processes of the jobs in `folder`: each has the mark, or names the folder in its command."""
    database = next((folder / "jobs").iterdir()).name
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            marked = process.environ().get(MARK, "").startswith(database)
            if (marked or str(folder / "jobs") in command_of(process)) and not ended(process):
                yield process


def kill_worker(folder: Path) -> None:
    for process in whose_commands_have("worker.py", of_jobs(folder)):
        with contextlib.suppress(psutil.Error):
            process.kill()


def check_the_end(server: Server) -> None:
    job = server.until("succeeded")
    result = json.loads(job["result"])
    assert result["final_step"] == STEPS
    assert server.steps() == list(range(1, STEPS + 1))
    checkpoints = [row["step"] for row in server.rows("SELECT step FROM job_checkpoints ORDER BY step")]
    assert set(checkpoints) >= set(range(3, STEPS + 1, 3))
    assert (server.folder / "published").read_text() == f"{job['attempt']} {STEPS}\n"
    until(lambda: not list(of_jobs(server.folder)), told=lambda: list(of_jobs(server.folder)))


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_killed_the_job_reaches_the_same_end(tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    server = Server(tmp_path, PLAN)
    try:
        for _ in range(3):
            time.sleep(random_.uniform(0, 0.6))
            victims = random_.choice(["worker", "server", "both"])
            if victims != "server":
                kill_worker(tmp_path)
            if victims != "worker":
                server.kill()
                server = Server(tmp_path)
        check_the_end(server)
        assert server.stop() == 0
    finally:
        server.kill()


def test_a_killed_server_goes_on_from_the_last_checkpoint_as_a_new_attempt(tmp_path: Path) -> None:
    server = Server(tmp_path, PLAN)
    try:
        server.until_step(10)
        server.kill()
        server = Server(tmp_path)
        server.until("succeeded")
        assert server.job()["attempt"] == 2
        (task,) = tmp_path.glob("jobs/*/*/2/task.json")
        resumed = json.loads(task.read_text())["params"]["resume_from_checkpoint"]
        assert resumed.startswith(str(task.parents[1] / "1" / "checkpoint-")), resumed
        check_the_end(server)
    finally:
        server.kill()


def test_what_a_worker_finished_while_no_server_was_there_is_published(tmp_path: Path) -> None:
    """The server is killed between the worker's result and its own conclusion: nothing is done again."""
    server = Server(tmp_path, PLAN | {"no_stop": True})
    try:
        server.until_step(3)
        os.kill(server.process.pid, signal.SIGSTOP)
        until(lambda: list(tmp_path.glob("jobs/*/*/1/result.json")))
        server.kill()
        server = Server(tmp_path)
        check_the_end(server)
        assert server.job()["attempt"] == 1
    finally:
        server.kill()


def test_a_server_that_is_told_to_stop_hands_its_jobs_back_with_a_checkpoint(tmp_path: Path) -> None:
    server = Server(tmp_path, PLAN | {"save_every": 1000})
    try:
        server.until_step(5)
        assert server.stop() == 0
        job = server.job()
        assert (job["status"], job["attempt"]) == ("queued", 1)
        assert list(tmp_path.glob("jobs/*/*/1/checkpoint-*"))
        assert list(of_jobs(tmp_path)) == []
        server = Server(tmp_path)
        job = server.until("succeeded")
        assert (job["attempt"], job["deaths"]) == (2, 0)
        assert server.steps() == list(range(1, STEPS + 1))
    finally:
        server.kill()
