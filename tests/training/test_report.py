"""What a worker tells of a training: few lines of each, however long it is, and all that matters."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.training.jobs import make_job
from training import report as reports
from training.folder import Checkpoint, Evaluation, JobFolder, Message, Step
from training.pipelines import train as pipeline
from training.report import Report


def told(folder: JobFolder, kind: type[Any]) -> list[int]:
    return [event.step for event, _ in folder.read_events() if isinstance(event, kind)]


def test_a_long_training_is_told_by_ten_thousand_steps_and_the_last(tmp_path: Path) -> None:
    report = Report(JobFolder(tmp_path))
    report.started(total_steps=35_001, rows=None)
    for step in range(1, 35_002):
        report.step(step, total_steps=35_001, epoch=0.5, logs={"loss": 1.0})
    steps = told(report.folder, Step)
    assert len(steps) <= 10_001
    assert (steps[0], steps[-1]) == (1, 35_001)
    assert max(later - earlier for earlier, later in pairwise(steps)) <= 4


def test_a_short_one_is_told_whole(tmp_path: Path) -> None:
    report = Report(JobFolder(tmp_path))
    report.started(total_steps=10_000, rows=None)
    for step in range(1, 10_001):
        report.step(step, total_steps=10_000, epoch=0.5, logs={"loss": 1.0})
    assert told(report.folder, Step) == list(range(1, 10_001))


def test_of_what_is_left_out_nothing_is_an_error_a_checkpoint_or_what_a_checkpoint_is_judged_by(
    tmp_path: Path, tiny: Path, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MOST_TOLD", 4)
    job = make_job(
        tmp_path / "job", "sft", model=str(tiny), dataset=str(lines), val_dataset=str(lines), max_steps=20,
        logging_steps=1, eval_strategy="steps", eval_steps=1, save_steps=3, report_to="none", torch_dtype="float32",
    )  # fmt: skip
    report = Report(job)
    params: Any = job.read_task().params
    result = pipeline.run(params, report)
    report.message("It ends.", level="error")

    checkpoints = told(job, Checkpoint)
    assert checkpoints == [3, 6, 9, 12, 15, 18, 20]
    assert set(told(job, Evaluation)) == {1, 5, 10, 15, 20, *checkpoints}
    assert told(job, Step) == [1, 5, 10, 15, 20]
    assert [event.message for event, _ in job.read_events() if isinstance(event, Message)][-1] == "It ends."
    history = json.loads((job.path / result.artifact / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in history if "loss" in line] == [1, 5, 10, 15, 20]
