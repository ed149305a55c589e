"""Jobs on a tiny model: its folder, data to train it on, and runs in this process or in one of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from server.jobs.worker_process import worker_command
from tests.engines.pt.tiny import CONFIGS, byte_level_tokenizer, save
from training.folder import Evaluation, JobFolder, Step
from training.params.task import TASK
from training.pipelines import train as pipeline
from training.refusals.supported import refusals
from training.report import Report
from training.trainers.job.job import train as train_with_it

ROOT = Path(__file__).parents[2]
BRIEF: dict[str, Any] = {
    "torch_dtype": "float32", "lr_scheduler_type": "constant", "learning_rate": 1e-2, "per_device_train_batch_size": 2,
    "max_steps": 6, "save_steps": 3, "logging_steps": 1, "split_dataset_ratio": 0, "report_to": ["none"],
}  # fmt: skip
"""A training of a few steps, of which two have checkpoints."""
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = ["red", "blue", "name", "value", "numbers", "the", "and", "one", "two", "three", "four", "five"]


def make_model(folder: Path, name: str = "llama", *, seed: int = 0) -> Path:
    """A tiny model with a tokenizer that has a chat template."""
    save(CONFIGS[name](), folder, seed=seed)
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def make_data(file: Path, rows: int = 12) -> Path:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"{WORDS[i % len(WORDS)]} {i}"},
                {"role": "assistant", "content": " ".join(WORDS[i % 5 : i % 5 + 1 + i % 4])},
            ]
        }
        for i in range(rows)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def make_job(folder: Path, task: str, **params: Any) -> JobFolder:
    folder.mkdir(parents=True)
    job = JobFolder(folder)
    job.write_task(TASK.validate_python({"task": task, "params": params}))
    return job


def start(job: JobFolder, *, processes: int, fault: str = "", **environment: str) -> "subprocess.Popen[bytes]":
    """The worker processes of one training; their output goes to worker.log.

    `fault`: the modules of `tests.training.faults` that each process imports as it starts, with spaces between.
    """
    faults = job.path / "faults"
    faults.mkdir()
    (faults / "sitecustomize.py").write_text(
        "".join(f"import tests.training.faults.{each}\n" for each in fault.split())
    )
    given = {"PYTHONPATH": f"{faults}:{ROOT}", "OMP_NUM_THREADS": "1", **environment}
    with (job.path / "worker.log").open("wb") as log:
        return subprocess.Popen(
            worker_command(job.path, processes=processes), cwd=ROOT, env=os.environ | given, stdout=log, stderr=log
        )


def trained(folder: Path, task: str, **params: Any) -> JobFolder:
    """A job that was run in this process, and has succeeded. Raises what a pipeline raises."""
    job = make_job(folder, task, **params)
    asked = job.read_task()
    assert asked.training is not None and refusals(asked) == []
    assert pipeline.run(asked.training, Report(job)).status == "succeeded"
    return job


def trained_by(folder: Path, task: str, **params: Any) -> tuple[JobFolder, Any]:
    """As `trained`, and the trainer that did it."""
    with seen_trainers() as trainers:
        return trained(folder, task, **params), trainers[-1]


@contextmanager
def seen_trainers() -> Iterator[list[Any]]:
    """Those of the trainings within, in the order in which they begin."""
    trainers: list[Any] = []

    def train(trainer: Any) -> Any:
        trainers.append(trainer)
        return train_with_it(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "train", train)
        yield trainers


def steps(job: JobFolder) -> dict[int, dict[str, float]]:
    """Step -> what is told of it."""
    return {event.step: event.metrics for event, _ in job.read_events() if isinstance(event, Step)}


def each_step(job: JobFolder) -> list[dict[str, float]]:
    """What is told of each step."""
    return [*steps(job).values()]


def weights(job: JobFolder, step: int, inside: str = "") -> dict[str, torch.Tensor]:
    """What a checkpoint holds, or the folder `inside` of it."""
    return dict(load_file(next((job.path / f"checkpoint-{step}" / inside).glob("*.safetensors"))))


def train_together(
    *jobs: JobFolder, processes: int, alone: tuple[JobFolder, ...] = (), packages: Path | None = None
) -> None:
    """Run the jobs one after another, each by all of these processes, then those that one process does `alone`.
    `packages`: a folder of further ones."""
    words = ["-m", "tests.training.parallel.many", str(processes), *(str(job.path) for job in jobs)]
    words += ["--", "1", *(str(job.path) for job in alone)] if alone else []
    path = f"{ROOT}:{packages}" if packages else str(ROOT)
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def losses(job: JobFolder) -> dict[int, float]:
    """Step -> loss."""
    return {number: metrics["loss"] for number, metrics in steps(job).items()}


def evaluations(job: JobFolder) -> dict[int, dict[str, float]]:
    return {event.step: event.metrics for event, _ in job.read_events() if isinstance(event, Evaluation)}
