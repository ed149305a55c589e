"""A grader judges the answers of a training."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.folder import JobFolder, Step
from training.methods import refusals
from training.params.rlhf import RlhfParams
from training.params.task import RlhfTask
from training.pipelines import train as pipeline
from training.report import Report
from training.rewards.graded import grader_reward
from training.rewards.types import Answered

LENGTH = {
    "type": "python",
    "name": "length",
    "source": "def grade(sample, item):\n    return len(sample['output_text']) * item['weight']",
}
CHECK = {
    "type": "string_check",
    "name": "check",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference_answer.word}}",
    "operation": "ilike",
}


def params(grader: dict[str, Any] | None = CHECK, **given: Any) -> RlhfParams:
    sizes = {"per_device_train_batch_size": 4, "num_generations": 4}
    return RlhfParams(rlhf_type="grpo", grader=grader, **sizes, **given)


def answered(text: str, **item: Any) -> Answered:
    return Answered(prompt_ids=[], token_ids=[], text=text, item=item)


def test_each_answer_is_judged_by_its_row() -> None:
    reward = grader_reward(params())
    assert reward is not None and reward.name == "check"
    word = {"reference_answer": {"word": "red"}}
    assert reward([answered("It is Red.", **word), answered("blue", **word), answered("red")]) == [1, 0, 0]
    assert [graded.error is None for graded in reward.last] == [True, True, False]


def test_without_a_grader_there_is_no_reward() -> None:
    assert grader_reward(params(None)) is None


@pytest.mark.parametrize(
    ("grader", "told"),
    [
        ({"type": "score_model", "model": "m", "input": [{"role": "user", "content": "a"}]}, "asks the model 'm'"),
        ({**CHECK, "input": "{{sample.output_tools}}"}, "sample.output_tools"),
        ({**CHECK, "input": "{{answer}}"}, "{{answer}} is no reference"),
    ],
)
def test_what_cannot_judge_in_a_training_is_refused(grader: dict[str, Any], told: str) -> None:
    (refusal,) = refusals(params(grader))
    assert refusal[0] == "grader" and told in refusal[1]


def test_what_is_no_grader_is_refused() -> None:
    with pytest.raises(ValueError, match="operation"):
        params({**CHECK, "operation": "equals"})


def test_a_training_learns_by_what_a_grader_says(tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"number {i}"}], "weight": 0.5} for i in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6, "max_steps": 2}
    given = {
        "rlhf_type": "grpo", "model": str(tiny), "dataset": [str(data)], "grader": LENGTH, "torch_dtype": "float32",
        "logging_steps": 1, "report_to": ["none"], "split_dataset_ratio": 0, "lora_rank": 2, "temperature": 1.0,
        "save_strategy": "no", **sizes,
    }  # fmt: skip
    folder = JobFolder(tmp_path)
    task = RlhfTask.model_validate({"task": "rlhf", "params": given})
    folder.write_task(task)
    pipeline.run(task.params, Report(folder))
    steps = [event for event, _ in folder.read_events() if isinstance(event, Step)]
    assert len(steps) == 2
    for step in steps:
        assert step.metrics["reward"] == step.metrics["rewards/length/mean"] > 0
