"""The worker process: it stops when told, dies without harm, and says why it failed."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.jobs import losses, make_job
from tests.training.worker import Worker
from tests.until import until
from training.folder import PARTIAL, JobFolder, Result, Started, Step

PATIENCE = 120
LONG: dict[str, Any] = {
    "torch_dtype": "float32", "max_steps": 400, "logging_steps": 1, "save_steps": 20, "learning_rate": 1e-3,
    "report_to": "none", "split_dataset_ratio": 0.0,
}  # fmt: skip


@pytest.fixture
def job(tmp_path: Path, tiny: Path, lines: Path) -> Callable[..., JobFolder]:
    def make(name: str = "job", task: str = "sft", **params: Any) -> JobFolder:
        return make_job(tmp_path / name, task, **{"model": str(tiny), "dataset": str(lines), **LONG, **params})

    return make


@pytest.fixture
def started() -> Iterator[Callable[..., Any]]:
    processes = []

    def begin(job: JobFolder, **how: Any) -> Any:
        processes.append(Worker(job, **how))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def wait_for(job: JobFolder, happened: Callable[[Any], bool]) -> None:
    log = job.path / "worker.log"
    until(lambda: any(happened(event) for event, _ in job.read_events()), told=log.read_text)


def result_of(job: JobFolder) -> Result:
    result = job.read_result()
    assert result is not None, (job.path / "worker.log").read_text()
    return result


def test_sigterm_saves_a_checkpoint_and_another_folder_goes_on_from_it(
    job: Callable[..., JobFolder], started: Callable[..., Any]
) -> None:
    first = job("first")
    process = started(first)
    wait_for(first, lambda event: isinstance(event, Step) and event.step >= 5)
    process.terminate()

    assert process.wait(PATIENCE) == 0
    stopped = result_of(first)
    assert stopped.status == "stopped"
    assert first.checkpoints()[-1] == stopped.final_step

    second = job("second", max_steps=stopped.final_step + 3, resume_from_checkpoint=str(
        first.path / f"checkpoint-{stopped.final_step}"
    ))  # fmt: skip
    assert started(second).wait(PATIENCE) == 0
    assert sorted(losses(second)) == [stopped.final_step + n for n in (1, 2, 3)]


def test_sigterm_before_the_first_step_ends_it_with_nothing_to_keep(
    job: Callable[..., JobFolder], started: Callable[..., Any]
) -> None:
    early = job()

    assert started(early, fault="told_to_stop_as_it_loads").wait(PATIENCE) == 0
    assert result_of(early).status == "stopped"
    assert early.checkpoints() == []


def test_killed_at_any_moment_it_leaves_whole_checkpoints_only(
    job: Callable[..., JobFolder], started: Callable[..., Any]
) -> None:
    victim = job(save_steps=1, train_type="full")
    process = started(victim)
    wait_for(victim, lambda event: isinstance(event, Step) and event.step >= 8)
    process.kill()
    process.wait()

    steps = victim.checkpoints()
    assert steps and victim.read_result() is None
    for step in steps:
        folder = victim.path / f"checkpoint-{step}"
        load_file(folder / "model.safetensors")
        torch.load(folder / "optimizer.pt")


def test_no_process_outlives_a_killed_worker(job: Callable[..., JobFolder], started: Callable[..., Any]) -> None:
    parent = job(dataloader_num_workers=2, max_steps=2000)
    process = started(parent)
    wait_for(parent, lambda event: isinstance(event, Step))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()

    assert children
    until(lambda: not any(_runs(pid) for pid in children))  # no data loader lives on


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("params", "code", "param", "words"),
    [
        ({"model": "/no/such/model"}, "unsupported_model", "model", "/no/such/model"),
        ({"use_galore": True}, "unsupported_parameter", "use_galore", "only train_type full reads it"),
        ({"max_pixels": 9}, "unsupported_parameter", "max_pixels", "images are not supported in this version"),
    ],
    ids=["model", "unread", "not supported"],
)
def test_a_job_that_cannot_be_done_says_why(
    job: Callable[..., JobFolder],
    started: Callable[..., Any],
    params: dict[str, Any],
    code: str,
    param: str,
    words: str,
) -> None:
    hopeless = job(**params)

    assert started(hopeless).wait(PATIENCE) == 1
    error = result_of(hopeless).error
    assert (error.code, error.param) == (code, param)
    assert words in error.message
    assert "Traceback" not in (hopeless.path / "worker.log").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_fails_the_job_in_clear_words(
    tmp_path: Path, tiny: Path, lines: Path, started: Callable[..., Any]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=1500k tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("this machine does not let a file system be mounted")
    try:
        params = {"model": str(tiny), "dataset": str(lines), **LONG, "max_steps": 60, "save_steps": 1}
        full = make_job(disk / "job", "sft", **params, train_type="full")
        status = started(full).wait(PATIENCE)
        error = result_of(full).error
        assert (status, error.code) == (1, "disk_full")
        assert not (full.path / PARTIAL).exists()
    finally:
        os.system(f"umount -l {disk}")


def test_a_training_says_that_it_began_before_its_first_step(
    job: Callable[..., JobFolder], started: Callable[..., Any]
) -> None:
    short = job(max_steps=2)

    assert started(short).wait(PATIENCE) == 0
    kinds = [type(event) for event, _ in short.read_events()]
    assert kinds.index(Started) < kinds.index(Step)
