"""A training by two processes whose data is streamed is the training by two processes whose data is not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.jobs import evaluations, make_data, make_job, start
from training.folder import JobFolder, Message

PATIENCE = 120
ALIKE: dict[str, Any] = {
    "torch_dtype": "float32", "per_device_train_batch_size": 4, "max_steps": 3, "save_steps": 3, "eval_steps": 3,
    "learning_rate": 1e-2, "lr_scheduler_type": "constant", "lora_dropout": 0.0, "average_tokens_across_devices": True,
    "report_to": "none", "ddp_backend": "gloo",
}  # fmt: skip


@pytest.fixture
def two(tmp_path: Path, tiny: Path) -> Callable[..., JobFolder]:
    """Runs two processes to their end."""

    def run(name: str, **params: Any) -> JobFolder:
        job = make_job(tmp_path / name, "sft", model=str(tiny), **ALIKE, **params)
        start(job, processes=2).wait(PATIENCE)
        assert job.read_result() is not None, (job.path / "worker.log").read_text()
        return job

    return run


def told(job: JobFolder) -> list[str]:
    return [event.message for event, _ in job.read_events() if isinstance(event, Message)]


def test_two_processes_learn_from_a_stream_what_they_learn_without(
    tmp_path: Path, two: Callable[..., JobFolder]
) -> None:
    lines = make_data(tmp_path / "eight.jsonl", 8)
    val = make_data(tmp_path / "val.jsonl", 3)
    lines.write_text(lines.read_text() + json.dumps({"nothing": 1}) + "\n")
    params = {"dataset": str(lines), "val_dataset": str(val)}
    read, streamed = two("read", **params), two("streamed", **params, streaming=True)

    weights = [load_file(job.path / "checkpoint-3" / "adapter_model.safetensors") for job in (read, streamed)]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-5)
    assert evaluations(streamed)[3] == pytest.approx(evaluations(read)[3], abs=1e-5)
    for job in (read, streamed):
        notes = [text for text in told(job) if text.startswith("1 rows of")]
        assert len(notes) == 1, told(job)


def test_data_that_cannot_be_used_ends_both_processes(
    tmp_path: Path, two: Callable[..., JobFolder], lines: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"nothing": 1}\n')
    for name, params in (("read", {}), ("streamed", {"streaming": True})):
        result = two(name, dataset=str(bad), val_dataset=str(lines), **params).read_result()
        assert result is not None
        assert result.error is not None
        assert result.error.code == "invalid_training_file"
        assert "Line 1 of bad.jsonl" in result.error.message
