"""GRPO and RLOO from the parameters to the checkpoint, with answers that our engine draws."""

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engines.errors import EngineFailure, InvalidRequest
from engines.pt.core import EngineCore
from engines.pt.outputs.requests import StepReport
from tests.training.jobs import make_job
from tests.training.ppo.given import save_reward_model
from training.folder import Checkpoint, Evaluation, JobFolder, Result, Step
from training.methods import METHODS
from training.params.rlhf import RlhfParams
from training.pipelines.train import run
from training.refusals.supported import refusals
from training.report import Report
from training.rollouts.engine import EngineRollouts
from training.rollouts.types import Rollout
from training.trainers.groups import GroupsTrainer

SHORT = """
def short(completions, **columns):
    assert columns["solution"] and columns["prompts"] and columns["completion_ids"]
    return [-len(ids) / 10 for ids in columns["completion_ids"]]

def broken(completions, **columns):
    return [1.0]
"""


@pytest.fixture
def given(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    data, rewards = tmp_path / "prompts.jsonl", tmp_path / "rewards.py"
    rows = [{"messages": [{"role": "user", "content": f"say {i}"}], "solution": "a"} for i in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewards.write_text(SHORT)
    return {
        "model": str(tiny), "dataset": [str(data)], "torch_dtype": "float32", "split_dataset_ratio": 0,
        "max_steps": 4, "logging_steps": 1, "save_steps": 1, "learning_rate": 1e-2, "lora_rank": 4, "lora_dropout": 0,
        "report_to": ["none"], "reward_funcs": [f"{rewards}:short"], "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "num_generations": 4, "max_completion_length": 8, "rlhf_type": "grpo",
    }  # fmt: skip


def train(folder: Path, **params: Any) -> JobFolder:
    job, begin = made(folder, **params)
    begin(Report(job))
    return job


def made(folder: Path, **params: Any) -> tuple[JobFolder, Callable[[Report], Result]]:
    """A job, and what runs it."""
    job = make_job(folder, "rlhf", **params)
    task = job.read_task()
    assert isinstance(task.params, RlhfParams)
    assert refusals(task) == []
    return job, partial(run, task.params)


def metrics(job: JobFolder) -> list[dict[str, float]]:
    """Of each step, but for what time it took."""
    steps = [event.metrics for event, _ in job.read_events() if isinstance(event, Step)]
    return [{name: value for name, value in step.items() if not name.startswith("rollouts/")} for step in steps]


def adapter(job: JobFolder, step: int) -> dict[str, torch.Tensor]:
    return dict(load_file(job.path / f"checkpoint-{step}" / "adapter_model.safetensors"))


@pytest.mark.parametrize("settings", [{}, {"rlhf_type": "rloo"}, {"num_iterations": 2, "loss_type": "dapo"}])
def test_a_training_that_was_killed_goes_on_as_if_undisturbed(
    given: dict[str, Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    """From the beginning of a generation, and from the middle of one."""
    whole = train(tmp_path / "whole", **given | settings)
    for step in (1, 2):
        checkpoint = str(whole.path / f"checkpoint-{step}")
        resumed = train(tmp_path / f"from {step}", **given | settings, resume_from_checkpoint=checkpoint)
        assert metrics(resumed) == metrics(whole)[step:]
        for name, weight in adapter(whole, 4).items():
            torch.testing.assert_close(adapter(resumed, 4)[name], weight, atol=0, rtol=0)


def test_each_generation_is_of_the_policy_of_its_step(given: dict[str, Any], tmp_path: Path) -> None:
    each = train(tmp_path / "each", **given)
    assert [step["policy_version"] for step in metrics(each)] == [0, 1, 2, 3]
    two = train(tmp_path / "two", **given, num_iterations=2)
    assert [step["policy_version"] for step in metrics(two) if "policy_version" in step] == [0, 2]


def test_metrics_say_what_was_rewarded_and_how_long_drawing_took(given: dict[str, Any], tmp_path: Path) -> None:
    job = train(tmp_path / "job", **given, reward_weights=[2.0])
    step = next(event.metrics for event, _ in job.read_events() if isinstance(event, Step))
    assert step["reward"] == pytest.approx(2 * step["rewards/short/mean"])
    assert step["rewards/short/mean"] == pytest.approx(-step["completions/mean_length"] / 10)
    assert 0 < step["rollouts/share_of_time"] < 1
    assert step["rollouts/tokens_per_second"] > 0
    assert {"reward_std", "frac_reward_zero_std", "kl", "entropy", "clip_ratio/region_mean"} <= step.keys()
    assert step["completions/max_length"] <= 8


def test_what_was_learned_loads_in_peft_alone(given: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    job = train(tmp_path / "job", **given)
    plain = AutoModelForCausalLM.from_pretrained(tiny)
    learned = PeftModel.from_pretrained(plain, job.path / "checkpoint-4")
    assert any(weight.abs().sum() > 0 for name, weight in learned.named_parameters() if "lora_B" in name)
    assert [event.step for event, _ in job.read_events() if isinstance(event, Checkpoint)] == [1, 2, 3, 4]


@pytest.mark.parametrize("where", [{}, {"rollout_device": "cpu"}])
def test_told_to_stop_while_it_draws_it_ends_at_once_and_goes_on_as_if_undisturbed(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: dict[str, Any]
) -> None:
    given |= where
    whole = train(tmp_path / "whole", **given)
    cut, begin = made(tmp_path / "cut", **given | {"save_steps": 100})
    report = Report(cut)
    step, steps = EngineCore.step, count()

    def stopping(core: EngineCore) -> StepReport:
        if next(steps) == 20:  # of the third draw, as a draw has eight at most
            report.stop_requested = True
        return step(core)

    monkeypatch.setattr(EngineCore, "step", stopping)
    assert begin(report).status == "stopped"
    monkeypatch.undo()
    assert cut.checkpoints() == [2]
    resumed = train(tmp_path / "resumed", **given, resume_from_checkpoint=str(cut.path / "checkpoint-2"))
    assert metrics(resumed) == metrics(whole)[2:]


AHEAD = {"rollout_device": "cpu", "rollout_max_num_seqs": 4}
"""Answers are drawn beside the trainer, one group after the other."""


@pytest.mark.parametrize("settings", [{}, {"rlhf_type": "rloo"}, {"num_iterations": 2}])
def test_what_is_learned_while_others_are_drawn_is_what_would_be_learned_after(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """The engine draws the second group only once something has been learned from the first."""
    whole = train(tmp_path / "whole", **given | settings)
    groups, learn, learned = EngineRollouts.groups, GroupsTrainer.compute_loss, Event()

    def waiting(engine: EngineRollouts, *asked: Any, **named: Any) -> Iterator[list[Rollout]]:
        learned.clear()
        for group in groups(engine, *asked, **named):
            yield group
            assert learned.wait(60)

    def learning(trainer: GroupsTrainer, *asked: Any, **named: Any) -> Any:
        learned.set()
        return learn(trainer, *asked, **named)

    monkeypatch.setattr(EngineRollouts, "groups", waiting)
    monkeypatch.setattr(GroupsTrainer, "compute_loss", learning)
    ahead = train(tmp_path / "ahead", **given | settings | AHEAD)
    for one, other in zip(metrics(ahead), metrics(whole), strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)  # means, of parts
    for name, weight in adapter(whole, 4).items():
        torch.testing.assert_close(adapter(ahead, 4)[name], weight, atol=0, rtol=0)
    last = [event.metrics for event, _ in ahead.read_events() if isinstance(event, Step)][-1]
    assert 0 <= last["rollouts/overlap"] <= last["rollouts/share_of_time"] <= 1

    resumed = train(
        tmp_path / "resumed", **given | settings | AHEAD, resume_from_checkpoint=str(ahead.path / "checkpoint-1")
    )
    assert metrics(resumed) == metrics(ahead)[1:]


@pytest.mark.parametrize("settings", [{"loss_type": "dapo"}, {"scale_rewards": "batch"}])
def test_nothing_is_learned_before_all_are_drawn_where_all_are_needed(
    given: dict[str, Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    brief = given | settings | {"max_steps": 1}
    assert metrics(train(tmp_path / "ahead", **brief | AHEAD)) == metrics(train(tmp_path / "whole", **brief))


def test_an_engine_that_fails_beside_the_trainer_ends_the_training(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = EngineCore.step, count()

    def failing(core: EngineCore) -> StepReport:
        if next(steps) == 30:
            raise RuntimeError("out of order")
        return step(core)

    monkeypatch.setattr(EngineCore, "step", failing)
    job, begin = made(tmp_path / "job", **given | AHEAD)
    with pytest.raises(EngineFailure, match="failed while it drew answers: out of order"):
        begin(Report(job))
    assert job.checkpoints() == [1]


def test_a_training_that_fails_ends_the_drawing_too(given: dict[str, Any], tmp_path: Path) -> None:
    broken = given["reward_funcs"][0].replace("short", "broken")
    with pytest.raises(InvalidRequest, match="broken gave 1 rewards for 4 answers"):
        train(tmp_path / "job", **given | AHEAD | {"reward_funcs": [broken], "max_completion_length": 60})
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rollouts")]


def test_a_reward_model_judges_beside_functions(given: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    save_reward_model(tiny, tmp_path / "judge", seed=1)
    job = train(
        tmp_path / "job", **given | {"max_steps": 1}, reward_model=str(tmp_path / "judge"), reward_weights=[0.0, 3.0]
    )
    [step] = metrics(job)
    assert step["reward"] == pytest.approx(3 * step["rewards/reward_model/mean"], rel=1e-4)
    assert step["rewards/reward_model/std"] > 0


def test_answers_are_written_down_with_their_rewards(given: dict[str, Any], tmp_path: Path) -> None:
    job = train(tmp_path / "job", **given | {"max_steps": 1}, log_completions=True)
    lines = [json.loads(line) for line in (job.path / "completions.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert lines[0].keys() == {"step", "prompt", "completion", "rewards", "advantage"}
    assert lines[0]["rewards"].keys() == {"short"}
    assert not (train(tmp_path / "none", **given | {"max_steps": 1}).path / "completions.jsonl").exists()


def test_an_evaluation_answers_prompts_and_judges(given: dict[str, Any], tmp_path: Path) -> None:
    validation = {"val_dataset": given["dataset"], "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    job = train(tmp_path / "job", **given | validation, metric_for_best_model="reward", greater_is_better=True)
    found = [event.metrics for event, _ in job.read_events() if isinstance(event, Evaluation)]
    assert len(found) == 2
    assert all(each["loss"] == pytest.approx(-each["reward"]) for each in found)


def test_an_evaluation_draws_as_many_answers_as_it_is_told(given: dict[str, Any], tmp_path: Path) -> None:
    validation = {"val_dataset": given["dataset"], "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    judged = {"num_generations_eval": 1, "log_completions": False}
    job = train(tmp_path / "job", **given | validation | judged)
    [found] = [event.metrics for event, _ in job.read_events() if isinstance(event, Evaluation)]
    assert found["frac_reward_zero_std"] == 1  # one answer is like itself
    task = make_job(tmp_path / "none", "rlhf", **given | {"num_generations_eval": 2}).read_task()
    assert "num_generations_eval" in dict(refusals(task))


SCHEMA = {"type": "object", "properties": {"word": {"enum": ["yes", "no"]}}, "required": ["word"]}


def test_answers_are_held_to_a_schema_and_judged_as_json(given: dict[str, Any], tmp_path: Path) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "word", "schema": SCHEMA, "strict": False}}
    says = {"type": "string_check", "name": "says", "input": "{{sample.output_json.word}}", "reference": "yes"}
    judged = {"response_format": form, "grader": {**says, "operation": "eq"}, "reward_funcs": []}
    more = {"log_completions": True, "max_completion_length": 40, "max_steps": 1}
    job = train(tmp_path / "job", **given | judged | more)
    lines = [json.loads(line) for line in (job.path / "completions.jsonl").read_text().splitlines()]
    words = [json.loads(line["completion"].removesuffix("<eos>"))["word"] for line in lines]
    assert set(words) <= {"yes", "no"}
    assert [line["rewards"]["says"] for line in lines] == [float(word == "yes") for word in words]
    [step] = metrics(job)
    assert step["rewards/says/errors"] == 0


def test_a_form_that_cannot_be_enforced_is_refused_before_training(given: dict[str, Any], tmp_path: Path) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "word", "schema": {"type": "nothing"}, "strict": True}}
    with pytest.raises(InvalidRequest) as refused:
        train(tmp_path / "job", **given | {"response_format": form})
    assert refused.value.param == "response_format"


def test_a_function_that_judges_wrongly_ends_the_training_by_name(given: dict[str, Any], tmp_path: Path) -> None:
    broken = given["reward_funcs"][0].replace("short", "broken")
    with pytest.raises(InvalidRequest, match="broken gave 1 rewards for 8 answers"):
        train(tmp_path / "job", **given | {"reward_funcs": [broken]})


REFUSED: dict[str, dict[str, Any]] = {
    "reward_funcs": {"reward_funcs": []},
    "reward_weights": {"reward_weights": [1.0, 2.0]},
    "num_generations": {"num_generations": 3},
    "steps_per_generation": {"steps_per_generation": 3},
    "rollout_max_num_seqs": {"rollout_max_num_seqs": 3},
    "streaming": {"streaming": True},
    "dataloader_num_workers": {"dataloader_num_workers": 1},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
    "lora_dropout": {"lora_dropout": 0.1},
    "ref_model": {"ref_model": "another", "beta": 0.0},
    "ref_model_revision": {"ref_model_revision": "main"},
    "loss_type": {"loss_type": "ipo"},
    "normalize_advantages": {"normalize_advantages": True},
    "cliprange": {"cliprange": 0.1},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_honoured_is_refused_by_name(given: dict[str, Any], tmp_path: Path, name: str) -> None:
    task = make_job(tmp_path / "job", "rlhf", **given | REFUSED[name]).read_task()
    assert name in [refused for refused, _ in refusals(task)]


def test_rloo_refuses_what_only_grpo_reads(given: dict[str, Any], tmp_path: Path) -> None:
    more = {"scale_rewards": "none", "delta": 2.0, "loss_type": "dapo", "rlhf_type": "rloo"}
    task = make_job(tmp_path / "job", "rlhf", **given | more).read_task()
    assert {"scale_rewards", "delta", "loss_type"} <= {refused for refused, _ in refusals(task)}
    assert METHODS["rloo"].rows == "prompts"
