"""Several machines of one training, here as several addresses of this one."""

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from engines.errors import InvalidRequest
from server.jobs.worker_process import worker_command
from tests.ports import free_port
from tests.training.jobs import ROOT, losses, make_job
from training.folder import JobFolder
from training.machines import ALONE, Machines, common_folder
from training.pipelines import train as pipeline
from training.report import Report

PATIENCE = 180
SHORT: dict[str, Any] = {
    "torch_dtype": "float32", "max_steps": 3, "logging_steps": 1, "report_to": "none", "split_dataset_ratio": 0.0,
    "lora_dropout": 0.0,
}  # fmt: skip


def test_two_machines_train_as_one(tmp_path: Path, tiny: Path, lines: Path) -> None:
    params = SHORT | {"model": str(tiny), "dataset": str(lines)}
    one = make_job(tmp_path / "one", "sft", **params, per_device_train_batch_size=2)
    pipeline.run(one.read_task().params, Report(one))  # type: ignore[arg-type]  # those of a training
    several = {"ddp_backend": "gloo", "average_tokens_across_devices": True}
    jobs = [make_job(tmp_path / f"machine-{rank}", "sft", **params, **several) for rank in (0, 1)]

    port = free_port("127.0.0.2")
    started = [start(job, Machines(2, rank, "127.0.0.2", port)) for rank, job in enumerate(jobs)]
    assert [process.wait(PATIENCE) for process in started] == [0, 0], (jobs[1].path / "worker.log").read_text()

    assert losses(jobs[0]) == pytest.approx(losses(one), abs=1e-4)
    assert [job.read_result().status for job in jobs] == ["succeeded", "succeeded"]
    assert [job.checkpoints() for job in jobs] == [[3], []]
    states = {path.name for path in (jobs[0].path / "checkpoint-3").glob("rng_state_*.pth")}
    assert states == {"rng_state_0.pth", "rng_state_1.pth"}


def start(job: JobFolder, machines: Machines) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (job.path / "worker.log").open("wb") as log:
        words = worker_command(job.path, processes=1, machines=machines)
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)


# ---- which one this is


def test_a_machine_is_told_by_the_variables_of_the_reference() -> None:
    told = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    assert Machines.of_environment(told) == Machines(2, 1, "10.0.0.1", 1234)
    assert Machines.of_environment({"NODE_RANK": "1", "NNODES": "1"}) == ALONE
    assert Machines.of_words(Machines(2, 1, "10.0.0.1", 1234).as_words()) == Machines(2, 1, "10.0.0.1", 1234)


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"NNODES": "two"}, "NNODES is a number"),
        ({"NNODES": "0"}, "NNODES is a number"),
        ({"NNODES": "2"}, "NODE_RANK has to number this machine, from 0 to 1"),
        ({"NNODES": "2", "NODE_RANK": "2"}, "from 0 to 1"),
        ({"NNODES": "2", "NODE_RANK": "0"}, "MASTER_ADDR has to say"),
    ],
)
def test_what_does_not_tell_it_is_refused(told: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        Machines.of_environment(told)


# ---- where they keep what they make


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[TCPStore]:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    yield store


def ask(folders: list[Path]) -> list[Path | str]:
    def one(rank: int) -> Path | str:
        try:
            return common_folder(folders[rank], rank=rank, count=len(folders))
        except InvalidRequest as error:
            return error.message

    with ThreadPoolExecutor() as threads:
        return list(threads.map(one, range(len(folders))))


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in ("first", "second", "third")]
    for folder in found:
        folder.mkdir()
    return found


def test_all_use_the_folder_of_the_first(store: TCPStore, folders: list[Path]) -> None:
    assert ask(folders) == [folders[0]] * 3
    assert [*folders[0].iterdir()] == []


def test_where_one_does_not_see_it_all_say_so(
    store: TCPStore, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.machines.Path.exists", lambda path: False)
    told = ask(folders)
    assert len(set(told)) == 1
    assert "does not see the folder of the first one" in str(told[0])
