"""Trainings of a tiny model in this process, with every optimizer, and what comes of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.jobs import losses, make_job
from training.folder import JobFolder
from training.pipelines import train as pipeline
from training.report import Report
from training.trainers.job.job import train as train_with_it

SETTINGS: dict[str, Any] = {
    "train_type": "full",
    "torch_dtype": "float32",
    "split_dataset_ratio": 0,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.01,
    "lr_scheduler_type": "linear",
    "max_steps": 6,
    "logging_steps": 1,
    "save_steps": 3,
    "report_to": ["none"],
    "gradient_checkpointing": False,
}


class Training:
    """Jobs in this process, and the trainers that ran."""

    def __init__(self, folder: Path, base: Path, data: Path) -> None:
        self.base = base
        self.trainers: dict[Path, Any] = {}
        self._folder = folder
        self.data = data

    def __call__(self, name: str, **params: Any) -> JobFolder:
        given = SETTINGS | {"model": str(self.base), "dataset": str(self.data)} | params
        given = {name: value for name, value in given.items() if value is not None}
        job = make_job(self._folder / name, given.pop("task", "sft"), **given)
        task = job.read_task()
        assert task.training is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "train", self._train)
            assert pipeline.run(task.training, Report(job)).status == "succeeded"
        return job

    def _train(self, trainer: Any) -> Any:
        self.trainers[trainer.job.report.folder.path] = trainer
        return train_with_it(trainer)

    def check_resumes_exactly(self, name: str, **params: Any) -> JobFolder:
        """The second half, gone on from a checkpoint, ends as the whole does. Returns the whole."""
        whole = self(name, **params)
        half = self(f"{name}-resumed", resume_from_checkpoint=str(whole.path / "checkpoint-3"), **params)
        assert list(losses(half).values()) == list(losses(whole).values())[3:]
        first, second = weights(whole), weights(half)
        assert all(torch.equal(first[each], second[each]) for each in first)
        return whole


def weights(job: JobFolder, step: int = 6) -> dict[str, torch.Tensor]:
    return dict(load_file(job.path / f"checkpoint-{step}" / "model.safetensors"))


def state(job: JobFolder, step: int = 6) -> dict[str, Any]:
    """The optimizer's, as a checkpoint has it."""
    found: dict[str, Any] = torch.load(job.path / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)
    return found


def same(first: JobFolder, second: JobFolder, tolerance: float = 1e-6) -> bool:
    """Whether two jobs ended with the same weights."""
    mine, theirs = weights(first), weights(second)
    return all(torch.allclose(mine[each], theirs[each], rtol=0, atol=tolerance) for each in mine)
