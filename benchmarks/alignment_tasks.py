"""One small task for each way to train: its data, its parameters, what it is to change, and how far."""

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import alignment_measures as measures
from benchmarks import alignment_world as world
from benchmarks.alignment_world import Row, World, rows
from training.folder import JobFolder
from training.params.task import TASK
from training.report import Report
from training.run import run

ROWS = 512

Params = Mapping[str, Any]
ALL: Params = {
    "torch_dtype": "float32",
    "train_type": "full",
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 16,
    "max_steps": 60,
    "learning_rate": 1e-3,
    "logging_steps": 10,
    "save_only_model": True,
    "save_strategy": "no",
    "split_dataset_ratio": 0,
    "report_to": ["none"],
}
"""Parameters of every task, unless it has others."""

LIKED = "share of the letter a in answers"


@dataclass(frozen=True, kw_only=True)
class Task:
    name: str
    row: Callable[[random.Random], Row]
    """Makes one row of its data."""
    measure: Callable[[Path, World], float]
    measured: str
    """What that is, in words."""
    goal: float
    """Where it is to come at least, or at most where it `falls`. Stated before the first run."""
    falls: bool = False
    params: Callable[[World], Params] = lambda _: {}
    """Those of its own."""
    task: str = "rlhf"
    own_head: bool = False
    """Whether training begins with new weights, so that what it begins from is known only once it has begun."""

    def reached(self, value: float) -> bool:
        return value <= self.goal if self.falls else value >= self.goal

    def train(self, world: World, seed: int, folder: Path, **params: Any) -> Path:
        """Run the job in `folder`, `params` besides its own; returns the model that it made. Raises RuntimeError where
        it did not succeed."""
        data = world.write(f"{self.name}-{seed}", rows(self.row, ROWS, seed=seed))
        asked = {"model": str(world.model), "dataset": data, "seed": seed, **ALL, **self.params(world), **params}
        folder.mkdir(parents=True)
        job = JobFolder(folder)
        job.write_task(TASK.validate_python({"task": self.task, "params": asked}))
        result = run(job, Report(job))
        if result is None or result.artifact is None:
            raise RuntimeError(f"{self.name}: {'it ended' if result is None else result.error}")
        return folder / result.artifact


def _margin(name: str, row: Callable[[random.Random], Row] = world.pair, **params: Any) -> Task:
    return Task(
        name=name,
        row=row,
        measure=lambda model, _: measures.margin(model),
        measured="margin of preferred answers, nats",
        goal=4.0,
        params=lambda _: {"rlhf_type": name, **params},
    )


def _grouped(name: str) -> Task:
    return Task(
        name=name,
        row=world.question,
        measure=lambda model, _: measures.reward(model),
        measured=LIKED,
        goal=0.5,
        params=lambda _: {
            "rlhf_type": name,
            "reward_funcs": [f"{world.__file__}:{world.rewards.__name__}"],
            "per_device_train_batch_size": 32,
            "num_generations": 8,
            "max_completion_length": 2 * world.MOST,
            "temperature": 1.0,
            "beta": 0.0,
        },
    )


def judge(made: World) -> Path:
    """The reward model that likes the letter a, made once."""
    folder = made.folder / "judge"
    if not folder.exists():
        growing = made.folder / ".judge"
        shutil.rmtree(growing, ignore_errors=True)
        BY_NAME["rm"].train(made, 0, growing).rename(folder)
    return folder


TASKS = (
    Task(
        name="sft",
        task="sft",
        row=world.demonstration,
        measure=lambda model, _: measures.likelihood(model),
        measured="log-probability of answers as shown, nats",
        goal=-11.0,
    ),
    _margin("dpo", rpo_alpha=0.0),
    _margin("ipo"),
    _margin("orpo"),
    _margin("simpo"),
    _margin("cpo"),
    _margin("kto", row=world.labelled),
    Task(
        name="rm",
        row=world.more_of_a,
        measure=lambda model, _: measures.preference(model),
        measured="part of pairs whose preferred answer has the higher reward",
        goal=0.9,
        params=lambda _: {"rlhf_type": "rm"},
        own_head=True,
    ),
    Task(
        name="seq_cls",
        task="sft",
        row=world.classified,
        measure=lambda model, _: measures.accuracy(model),
        measured="part of texts whose class is found, of three",
        goal=0.9,
        params=lambda _: {"task_type": "seq_cls", "num_labels": len(world.CLASSES)},
        own_head=True,
    ),
    _grouped("grpo"),
    _grouped("rloo"),
    Task(
        name="ppo",
        row=world.question,
        measure=lambda model, _: measures.reward(model),
        measured=LIKED,
        goal=0.5,
        params=lambda made: {
            "rlhf_type": "ppo",
            "reward_model": str(judge(made)),
            "response_length": 2 * world.MOST,
            "temperature": 1.0,
        },
    ),
    Task(
        name="gkd",
        row=world.demonstration,
        measure=lambda model, made: measures.divergence(model, made.teacher),
        measured="KL from the teacher at each token, nats",
        goal=0.1,
        falls=True,
        params=lambda made: {
            "rlhf_type": "gkd",
            "teacher_model": str(made.teacher),
            "response_length": 2 * world.MOST,
            "temperature": 1.0,
        },
    ),
)
BY_NAME = {task.name: task for task in TASKS}
