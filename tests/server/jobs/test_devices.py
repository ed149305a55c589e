"""Which GPUs a job gets, and what its worker is told."""

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from engines.errors import InvalidRequest
from server.jobs import scheduler
from server.jobs.devices import Device, FixedDevices, choose, parse
from server.jobs.executor import LocalExecutor, Order
from server.jobs.job import JobStatus
from server.store.access import SERVER
from tests.processes import ended
from tests.server.jobs.conftest import Office
from tests.server.process import ROOT
from tests.until import async_until
from training.params.task import MergeTask, SftTask

GIB = 1 << 30
FOUR = tuple(Device(f"GPU-{n}", free * GIB) for n, free in enumerate((10, 40, 80, 20)))
TOLD_WORKER = str(Path(__file__).with_name("told_worker.py"))


def test_what_nvidia_smi_says_is_read() -> None:
    text = "GPU-a1, 81079\nGPU-b2, 512\nGPU-c3, [N/A]\n"
    assert parse(text)[:2] == [Device("GPU-a1", 81079 << 20), Device("GPU-b2", 512 << 20)]
    assert parse(text)[2].free_bytes > 1000 * GIB
    assert parse("") == []


@pytest.mark.parametrize(
    ("count", "taken", "needed", "chosen"),
    [
        (1, (), 4, ["GPU-2"]),
        (2, (), 4, ["GPU-2", "GPU-1"]),
        (2, ("GPU-2",), 4, ["GPU-1", "GPU-3"]),
        (0, (), 4, []),
        (2, (), 50, None),
        (1, ("GPU-0", "GPU-1", "GPU-2", "GPU-3"), 1, None),
    ],
)
def test_a_job_gets_free_gpus_with_the_most_memory(
    count: int, taken: tuple[Any, ...] | tuple[str, ...], needed: int, chosen: list[Any] | None
) -> None:
    found = choose(FOUR, count, taken=taken, needed_bytes=needed * GIB)
    assert (None if found is None else [device.id for device in found]) == chosen


async def test_two_jobs_never_share_a_gpu_and_one_for_the_cpu_goes_past(tmp_path: Path) -> None:
    office = Office(tmp_path, max_running=8, devices=FixedDevices(*FOUR[:2]))
    await office.open()
    long = {"steps": 10_000, "seconds": 0.02}
    first = await office.create(long, devices=1)
    await office.until_step(first, 1)
    both = await office.create(long, devices=2)
    await office.until(both, JobStatus.QUEUED)
    one = await office.create(long, devices=1)
    await office.until(one, JobStatus.QUEUED)
    await office.until(await office.create(devices=0), JobStatus.SUCCEEDED)
    # the one behind waits as well, or the one that needs both might never come to its turn
    assert [(await office.jobs.store.get(job.id, SERVER)).status for job in (both, one)] == [JobStatus.QUEUED] * 2
    await office.jobs.cancel(first.id, SERVER)
    await office.until_step(both, 1)
    assert set(office.jobs._scheduler.run_of(both.id).devices) == {"GPU-0", "GPU-1"}
    with pytest.raises(InvalidRequest, match="this server has 2 GPUs"):
        await office.create(devices=3)
    await office.close(grace=0)


async def test_a_job_gets_the_gpu_whose_memory_another_program_gives_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "LOOK_SECONDS", 0.01)
    devices = FixedDevices(Device("GPU-0", 0))
    office = Office(tmp_path, devices=devices)
    await office.open()
    job = await office.until(await office.create(devices=1), JobStatus.QUEUED)
    devices.devices = (Device("GPU-0", GIB),)
    await office.until(job, JobStatus.SUCCEEDED)
    await office.close()


def test_a_training_wants_a_gpu_where_there_is_one_and_a_merge_none() -> None:
    assert (SftTask.gpus, MergeTask.gpus) == (1, 0)


# ---- the worker's command


async def told(tmp_path: Path, *devices: str, online: bool = False) -> dict[str, Any]:
    executor = LocalExecutor(command=(sys.executable, "-S", TOLD_WORKER))
    order = Order(program="run", folder=tmp_path, mark="mark/1", devices=devices, online=online)
    worker = await executor.start(order)
    assert await worker.wait() == 0
    return json.loads((tmp_path / "worker.log").read_text().splitlines()[-1])


async def test_a_worker_leads_its_own_group_in_its_folder_with_its_gpus(tmp_path: Path) -> None:
    seen = await told(tmp_path, "GPU-1", "GPU-2")
    assert seen.pop("environment")
    assert seen == {
        "argv": ["run", str(tmp_path)],
        "nice": 0,
        "cwd": str(tmp_path),
        "group": True,
        "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2",
        "PYTHONSAFEPATH": "1",
        "TUNESERVE_JOB": "mark/1",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.mark.parametrize("online", [False, True])
async def test_a_worker_gets_no_secret_of_the_servers_and_no_way_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: bool
) -> None:
    secret = (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "TUNESERVE_API_KEY",
        "AWS_ACCESS_KEY_ID",
        "PGPASSWORD",
        "TUNESERVE_DATABASE_URL",
    )
    for name in (*secret, "HF_TOKEN_PATH", "NETRC"):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    seen = await told(tmp_path, online=online)
    assert "s3cret" not in seen["environment"].values()
    assert seen["environment"]["TOKENIZERS_PARALLELISM"] == "false"
    assert seen["environment"]["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"
    assert seen["environment"].get("HF_HUB_OFFLINE") == (None if online else "1")


async def test_a_worker_on_the_cpu_is_polite_and_sees_no_gpu(tmp_path: Path) -> None:
    seen = await told(tmp_path)
    assert (seen["nice"], seen["CUDA_VISIBLE_DEVICES"]) == (10, "")


def test_several_gpus_are_several_processes(tmp_path: Path) -> None:
    def program(*devices: str) -> list[str]:
        return LocalExecutor()._program(Order(program="run", folder=tmp_path, mark="m", devices=devices))

    assert program("GPU-0") == [sys.executable, "-m", "training.run", str(tmp_path)]
    assert program("GPU-0", "GPU-1") == [sys.executable, "-m", "training.torchrun", str(tmp_path), "2"]


async def test_a_worker_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Where the system can promise that."""
    if shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv here")
    command = (sys.executable, "-m", "tests.server.jobs.starter", str(tmp_path))
    server = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    pid = int(await server.stdout.readline())
    worker = psutil.Process(pid)
    await async_until(lambda: "setpriv" not in " ".join(worker.cmdline()))  # it has become the worker
    server.kill()
    await server.wait()
    await async_until(lambda: ended(worker))
