"""One small task for each way to train: its data, its parameters, what it is to change, and how far."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import alignment_measures as measures
from benchmarks import alignment_world as world
from benchmarks.alignment_world import Row, World

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


def _margin(name: str, row: Callable[[random.Random], Row] = world.pair, **params: Any) -> Task:
    return Task(
        name=name,
        row=row,
        measure=lambda model, _: measures.margin(model),
        measured="margin of preferred answers, nats",
        goal=4.0,
        params=lambda _: {"rlhf_type": name, **params},
    )


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
)
BY_NAME = {task.name: task for task in TASKS}
