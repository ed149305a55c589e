"""Each way to train moves what it optimises, by learning alone: `benchmarks.alignment`, shorter."""

from pathlib import Path

import pytest

from benchmarks.alignment import NO_RATE, STILL
from benchmarks.alignment_tasks import TASKS, Task
from benchmarks.alignment_world import World
from training.methods import METHODS

SHORT = {"max_steps": 20, "learning_rate": 3e-3}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("language"), steps=100)


@pytest.mark.parametrize("task", [task for task in TASKS if task.name in METHODS], ids=lambda task: task.name)
def test_what_is_optimised_moves_past_its_goal_by_learning_alone(task: Task, world: World, tmp_path: Path) -> None:
    before = task.measure(task.train(world, 1, tmp_path / "before", max_steps=1, learning_rate=NO_RATE), world)
    still = task.measure(task.train(world, 1, tmp_path / "still", max_steps=3, learning_rate=NO_RATE), world)
    after = task.measure(task.train(world, 1, tmp_path / "after", **SHORT), world)
    assert abs(still - before) <= STILL
    assert task.reached(after) and not task.reached(before), (before, after)
