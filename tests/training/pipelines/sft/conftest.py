"""Supervised trainings that run in the test's own process, each once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.jobs import make_job
from tests.training.pipelines.sft.runs import QUICK
from training.folder import JobFolder, Result
from training.pipelines import train as pipeline
from training.report import Report


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the jobs are."""
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def train(jobs: Path, tiny: Path, lines: Path) -> Callable[..., tuple[JobFolder, Result]]:
    """Run a job in this process, once for all tests that give the same parameters; its folder and result."""
    made: dict[str, tuple[JobFolder, Result]] = {}

    def run(**params: Any) -> tuple[JobFolder, Result]:
        given = {"model": str(tiny), "dataset": str(lines), **QUICK, **params}
        key = json.dumps(given, sort_keys=True)
        if key not in made:
            job = make_job(jobs / str(len([*jobs.iterdir()])), "sft", **given)
            asked: Any = job.read_task().completed().params
            made[key] = job, pipeline.run(asked, Report(job))
        return made[key]

    return run
