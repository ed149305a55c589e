"""What a field says of the tasks that read it."""

from engines.params.about import facts
from training.params.task import TASKS, params_of


def test_what_a_field_says_of_tasks_names_tasks_that_there_are() -> None:
    named = {task for params in map(params_of, TASKS.values()) for _, said in facts(params) for task in said.tasks}
    assert named == {"deploy", *TASKS}
