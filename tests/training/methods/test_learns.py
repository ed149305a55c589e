"""Each way to train moves what it optimises, by learning alone: `benchmarks.alignment` on one seed."""

import pytest

from benchmarks.alignment import NO_RATE, STILL, before_of, value_of
from benchmarks.alignment_tasks import TASKS, Task
from benchmarks.alignment_world import World
from training.methods import METHODS

ENOUGH = {"ppo": {"max_steps": 20}, "grpo": {"max_steps": 30}, "rloo": {"max_steps": 30}, "gkd": {"max_steps": 30}}
"""Steps after which those that take long have learned it."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("language"), steps=100)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_what_is_optimised_moves_past_its_goal_by_learning_alone(task: Task, world: World) -> None:
    before = before_of(task, world, 1)
    still = value_of(task, world, 1, learning_rate=NO_RATE, max_steps=3)
    after = value_of(task, world, 1, **ENOUGH.get(task.name, {}))
    assert abs(still - before) <= STILL
    assert task.reached(after) and not task.reached(before), (before, after)


def test_every_method_but_that_of_plain_text_is_shown_to_learn() -> None:
    assert {task.name for task in TASKS} == METHODS.keys() - {"pt"}
