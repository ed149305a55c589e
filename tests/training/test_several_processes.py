"""Several processes of one training, on CPUs: they stop together, and say which of them failed."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from engines.errors import InvalidRequest
from tests.training.jobs import make_job, start
from tests.until import until
from training import device
from training.folder import JobFolder, Message, Result, Step
from training.trainers.job.arguments import on_one_device

PATIENCE = 120
LONG: dict[str, Any] = {
    "torch_dtype": "float32", "max_steps": 400, "logging_steps": 1, "save_steps": 1000, "report_to": "none",
    "split_dataset_ratio": 0.0, "ddp_backend": "gloo",
}  # fmt: skip


@pytest.fixture
def job(tmp_path: Path, tiny: Path, lines: Path) -> JobFolder:
    return make_job(tmp_path / "job", "sft", model=str(tiny), dataset=str(lines), **LONG)


@pytest.fixture
def started() -> Iterator[Callable[..., Any]]:
    processes = []

    def begin(job: JobFolder, **how: Any) -> Any:
        processes.append(start(job, processes=2, **how))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def result_of(job: JobFolder) -> Result:
    result = job.read_result()
    assert result is not None, (job.path / "worker.log").read_text()
    return result


def test_the_result_tells_of_the_process_that_failed_and_not_of_those_it_left(
    job: JobFolder, started: Callable[..., Any]
) -> None:
    assert started(job, fault="rank_1_runs_out_of_memory").wait(PATIENCE) == 1
    result = result_of(job)
    assert (result.status, result.error.code) == ("failed", "out_of_memory")
    assert result.error.message.startswith("rank 1 of 2: memory ran out"), result.error.message


def test_where_one_is_killed_all_end_as_killed_and_none_says_that_it_failed(
    job: JobFolder, started: Callable[..., Any]
) -> None:
    process = started(job, fault="rank_1_is_killed")
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert job.read_result() is None
    messages = [event.message for event, _ in job.read_events() if isinstance(event, Message)]
    assert messages[-1] == "Rank 1 of 2 was ended by signal 9."


def test_told_to_stop_they_have_as_long_for_a_checkpoint_as_whoever_told_them_waits(
    job: JobFolder, started: Callable[..., Any]
) -> None:
    impatient = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1"}
    process = started(job, fault="slow_checkpoints computes_at_its_end", **impatient)
    until(
        lambda: any(isinstance(event, Step) for event, _ in job.read_events()),
        told=lambda: (job.path / "worker.log").read_text(),
    )
    process.terminate()
    assert process.wait(PATIENCE) == 0, (job.path / "worker.log").read_text()
    result = result_of(job)
    assert (result.status, job.checkpoints()) == ("stopped", [result.final_step])


# ---- one process, one device


@pytest.mark.parametrize(
    ("visible", "seen"), [(None, "0"), ("0,1", "0"), ("3,1", "3"), ("GPU-a,GPU-b", "GPU-a"), ("", "")]
)
def test_one_process_sees_one_device(monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: str) -> None:
    assert seen_by(monkeypatch, visible, 1, None) == seen
    assert seen_by(monkeypatch, visible, 1, "cpu") == seen


@pytest.mark.parametrize(("visible", "seen"), [(None, "0,1"), ("3,1,0", "3,1"), ("GPU-a", "GPU-a")])
def test_it_sees_the_one_on_which_answers_are_drawn_too(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: str
) -> None:
    assert seen_by(monkeypatch, visible, 1, "cuda:1") == seen


def test_one_of_several_sees_all_and_takes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen_by(monkeypatch, "0,1", 2, None) == "0,1"


def seen_by(monkeypatch: pytest.MonkeyPatch, visible: str | None, processes: int, rollout_device: str | None) -> str:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    monkeypatch.setattr(os, "environ", environment)
    device.see_devices(processes, rollout_device)
    return environment["CUDA_VISIBLE_DEVICES"]


def test_a_trainer_uses_one_device_of_those_it_sees(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path))
    arguments._n_gpu = 2
    on_one_device(arguments)
    assert arguments.n_gpu == 1


def test_a_device_that_is_not_here_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="cuda:7 is not here") as refused:
        device.named_device("cuda:7", param="rollout_device")
    assert refused.value.param == "rollout_device"


def test_more_processes_than_gpus_are_refused_where_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    device.check_devices(2)
    with pytest.raises(InvalidRequest, match="3 processes need a GPU each, and 2 can be seen"):
        device.check_devices(3)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    device.check_devices(3)
