"""A grader judges the answers of a training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engines.errors import InvalidRequest, TuneserveError
from training.folder import JobFolder, Step
from training.methods import refusals
from training.params.graders import asking, parse_grader
from training.params.rlhf import RlhfParams
from training.params.task import RlhfTask
from training.pipelines import train as pipeline
from training.report import Report
from training.rewards.graded import GraderReward
from training.rewards.graders.grading import sample_of
from training.rewards.graders.judging import Question, Reply
from training.rewards.types import Answered
from training.trainers.answers.base_judge import BaseJudge

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


JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "base",
    "input": [{"role": "user", "content": "Is {{sample.output_text}} a word?"}],
    "range": [-2, 2],
    "sampling_params": {"max_completions_tokens": 40},
}


def params(grader: dict[str, Any] | None = CHECK, **given: Any) -> RlhfParams:
    sizes = {"per_device_train_batch_size": 4, "num_generations": 4}
    return RlhfParams(**{"rlhf_type": "grpo", "model": "/models/base", "grader": grader, **sizes, **given})


def nobody(questions: Sequence[Question]) -> list[Reply | TuneserveError]:
    raise AssertionError("no model is asked")


def plain(answer: Answered) -> dict[str, Any]:
    return sample_of(answer.text, ended=answer.ended)


def answered(text: str, **item: Any) -> Answered:
    return Answered(prompt_ids=[], token_ids=[], text=text, item=item)


def test_each_answer_is_judged_by_its_row() -> None:
    reward = GraderReward(parse_grader(CHECK), nobody, plain)
    assert reward is not None and reward.name == "check"
    word = {"reference_answer": {"word": "red"}}
    assert reward([answered("It is Red.", **word), answered("blue", **word), answered("red")]) == [1, 0, 0]
    assert reward.parts() == {"rewards/check/errors": [0, 0, 1]}


@pytest.mark.parametrize(
    ("grader", "told"),
    [
        ({**JUDGE, "model": "m"}, "asks the model 'm'"),
        ({**JUDGE, "sampling_params": {"reasoning_effort": "low"}}, "sampling_params.reasoning_effort"),
        ({**CHECK, "input": "{{sample.output_audio}}"}, "sample.output_audio"),
        ({**CHECK, "input": "{{answer}}"}, "{{answer}} is no reference"),
    ],
)
def test_what_cannot_judge_in_a_training_is_refused(grader: dict[str, Any], told: str) -> None:
    (refusal,) = refusals(params(grader))
    assert refusal[0] == "grader" and told in refusal[1]


def test_what_is_no_grader_is_refused() -> None:
    with pytest.raises(ValueError, match="operation"):
        params({**CHECK, "operation": "equals"})


def test_a_model_is_asked_about_all_answers_at_once_and_the_same_thing_once() -> None:
    asked: list[list[str]] = []

    def ask(questions: Sequence[Question]) -> list[Reply | TuneserveError]:
        asked.append([question.messages[0]["content"] for question in questions])
        texts = ('{"steps": [], "result": 1.5}', '{"steps": [], "result": 7}', '{"steps": [')
        return [*(Reply(text=text) for text in texts), InvalidRequest("The prompt is too long")]

    reward = GraderReward(parse_grader(JUDGE), ask, plain)
    assert reward is not None
    assert reward([answered(text) for text in ("a", "b", "c", "d", "a")]) == [1.5, 2, 0, 0, 1.5]
    assert asked == [[f"Is {text} a word?" for text in ("a", "b", "c", "d")]]
    kinds = [graded.error and graded.error.kind for graded in reward.last]
    assert kinds == [None, None, "model_grader_parse_error", "model_grader_server_error", None]


def test_another_model_is_asked_in_every_part() -> None:
    other = {**JUDGE, "model": "other"}
    for graders in (JUDGE, {"a": JUDGE, "b": CHECK}, [JUDGE, CHECK]):
        found = asking({"type": "multi", "graders": graders, "calculate_output": "a"}, "other")
        assert found["graders"] in (other, {"a": other, "b": CHECK}, [other, CHECK])
        assert found["type"] == "multi"


def test_each_part_of_a_multi_is_told() -> None:
    both = {"type": "multi", "name": "both", "graders": {"a": CHECK, "b": LENGTH}, "calculate_output": "a + b"}
    reward = GraderReward(parse_grader(both), nobody, plain)
    assert reward is not None
    item = {"reference_answer": {"word": "red"}, "weight": 0.5}
    assert reward([answered("red", **item), answered("blue", **item)]) == [2.5, 2]
    assert reward.parts() == {
        "rewards/both/errors": [0, 0],
        "rewards/both.a/mean": [1, 0],
        "rewards/both.b/mean": [1.5, 2],
    }


def trained(tiny: Path, folder: Path, grader: dict[str, Any], **more: Any) -> list[Step]:
    data = folder / "rows.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"number {i}"}], "weight": 0.5} for i in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6, "max_steps": 2}
    given = {
        "rlhf_type": "grpo", "model": str(tiny), "dataset": [str(data)], "grader": grader, "torch_dtype": "float32",
        "logging_steps": 1, "report_to": ["none"], "split_dataset_ratio": 0, "temperature": 1.0,
        "save_strategy": "no", **sizes,
    }  # fmt: skip
    job = JobFolder(folder)
    task = RlhfTask.model_validate({"task": "rlhf", "params": given | more})
    job.write_task(task)
    pipeline.run(task.params, Report(job))
    return [event for event, _ in job.read_events() if isinstance(event, Step)]


def test_a_training_learns_by_what_a_grader_says(tiny: Path, tmp_path: Path) -> None:
    steps = trained(tiny, tmp_path, LENGTH, lora_rank=2)
    assert len(steps) == 2
    for step in steps:
        assert step.metrics["reward"] == step.metrics["rewards/length/mean"] > 0
        assert step.metrics["rewards/length/errors"] == 0


@pytest.mark.parametrize("given", [{"lora_rank": 2}, {"train_type": "full"}])
def test_the_base_model_judges_the_answers_of_the_one_that_learns(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    said: list[Reply | TuneserveError] = []

    def ask(self: BaseJudge, questions: Sequence[Question]) -> list[Reply | TuneserveError]:
        found = real(self, questions)
        said.extend(found)
        return found

    real = BaseJudge.__call__
    monkeypatch.setattr(BaseJudge, "__call__", ask)
    steps = trained(tiny, tmp_path, {**JUDGE, "model": tiny.name}, **given)
    assert len(steps) == 2 and all("rewards/judge/mean" in step.metrics for step in steps)
    assert said
    for reply in said:
        assert isinstance(reply, Reply) and reply.text.lstrip().startswith("{")
        assert 0 < reply.usage.completion_tokens <= 40 and reply.usage.prompt_tokens > 0
