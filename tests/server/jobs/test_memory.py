"""A worker that takes too much memory ends alone, and its job says what it was."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from server.jobs import executor, memory
from server.jobs.executor import LocalExecutor, Order
from server.jobs.job import JobStatus
from tests.server.jobs.conftest import Office
from tests.server.process import ROOT
from tests.training.jobs import make_data, make_job, make_model
from tests.until import PATIENCE, until
from training.folder import JobFolder

MIB = 1 << 20
LIMITED_WORKER = Path(__file__).with_name("limited_worker.py")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits and tells it")


@linux
async def test_the_system_ends_a_worker_before_its_server_and_limits_it(tmp_path: Path) -> None:
    limited = LocalExecutor(memory=900 * MIB, command=(sys.executable, "-S", str(LIMITED_WORKER)))
    worker = await limited.start(Order(program="run", folder=tmp_path, mark="m"))
    assert await worker.wait() == 0
    assert json.loads((tmp_path / "worker.log").read_text()) == [900 * MIB, "1000\n"]


@linux
async def test_a_training_that_asks_for_more_than_its_limit_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import tests.training.faults.first_step_takes_8_gib")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    model, data = make_model(tmp_path / "tiny"), make_data(tmp_path / "lines.jsonl")
    job = make_job(tmp_path / "job", "sft", model=str(model), dataset=str(data), max_steps=1, report_to="none")
    worker = await LocalExecutor(memory=7 << 30).start(Order(program="run", folder=job.path, mark="m"))
    assert await worker.wait() == 1
    result = JobFolder(job.path).read_result()
    assert result is not None and result.error.code == "out_of_memory", (job.path / "worker.log").read_text()


async def test_a_job_whose_worker_the_system_ends_for_want_of_memory_says_so(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = count()
    monkeypatch.setattr(executor, "count_oom_kills", lambda: next(kills))
    job = await office.until(await office.create({"die_at": 5, "deaths": 9}), JobStatus.FAILED)
    assert (job.deaths, job.error["code"]) == (3, "out_of_memory")
    assert "most likely because memory ran out" in job.error["message"]


@pytest.mark.parametrize(
    ("cgroup", "events", "vmstat", "kills"),
    [
        ("0::/a\n", "low 0\noom 9\noom_kill 2\n", "oom_kill 7\n", 2),
        ("4:memory:/b\n0::/\n", None, "pgfault 1\noom_kill 7\n", 7),
        ("", None, "pgfault 1\n", None),
    ],
    ids=["its own", "the machine's", "not told"],
)
def test_ended_processes_are_counted_where_the_system_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, events: str | None, vmstat: str, kills: int | None
) -> None:
    for name, text in (("OWN_CGROUP", cgroup), ("MACHINE", vmstat)):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, name, tmp_path / name)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    if events is not None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "memory.events").write_text(events)
    assert memory.count_oom_kills() == kills


# ---- a machine whose memory runs out: a cgroup


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """One with 400 MiB."""
    for root, limit in (("memory", "memory.limit_in_bytes"), (".", "memory.max")):
        folder = Path("/sys/fs/cgroup", root, f"tuneserve-test-{os.getpid()}")
        if not (folder.parent / "cgroup.procs").exists():
            continue
        try:
            folder.mkdir()
            (folder / limit).write_text(str(400 * MIB))
        except OSError:
            continue
        break
    else:
        pytest.skip("this machine does not let a cgroup with a limit of memory be made")
    yield folder
    until(lambda: not (folder / "cgroup.procs").read_text())
    folder.rmdir()


def test_a_worker_that_takes_all_memory_ends_alone_and_its_server_goes_on(tmp_path: Path, cgroup: Path) -> None:
    plan: dict[str, Any] = {"take_all": 5, "deaths": 1}
    words = [sys.executable, "-m", "tests.server.jobs.office", str(tmp_path), json.dumps(plan)]
    server = subprocess.Popen(
        ["sh", "-c", f"echo $$ > {cgroup}/cgroup.procs && exec {shlex.join(words)}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    try:
        until(lambda: (tmp_path / "published").exists())
        assert (tmp_path / "published").read_text() == "2 10\n"
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
    finally:
        server.kill()
        server.wait()
