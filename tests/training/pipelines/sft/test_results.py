"""What a supervised training writes: checkpoints that others can read, and what it says meanwhile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from engines.adapters.folder import read_adapter
from engines.pt.config import PtConfig
from engines.pt.runner import ModelRunner
from tests.training.jobs import evaluations
from training.folder import Checkpoint, JobFolder, Message, Result, Started


def test_a_job_says_what_happens(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    job, result = train()

    events = [event for event, _ in job.read_events()]
    assert Started(time=0, total_steps=6, rows=12) in [e.model_copy(update={"time": 0}) for e in events]
    assert [event.step for event in events if isinstance(event, Checkpoint)] == [3, 6]
    assert job.checkpoints() == [3, 6]
    assert any(isinstance(event, Message) for event in events)
    assert (result.status, result.artifact, result.kind, result.final_step) == (
        "succeeded", "checkpoint-6", "adapter", 6,
    )  # fmt: skip
    assert result.trained_tokens and result.metrics["train_runtime"] > 0


def test_an_adapter_is_one_that_peft_and_our_engine_load(
    train: Callable[..., tuple[JobFolder, Result]], tiny: Path
) -> None:
    job, result = train()
    folder = job.path / result.artifact

    support = ModelRunner(PtConfig(model=str(tiny), dtype="float32", max_loras=1)).lora.support
    assert read_adapter(folder, support).rank == 8
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), folder)
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_full_training_writes_a_model(train: Callable[..., tuple[JobFolder, Result]], tiny: Path) -> None:
    job, result = train(train_type="full")

    model = AutoModelForCausalLM.from_pretrained(job.path / result.artifact)
    before = AutoModelForCausalLM.from_pretrained(tiny)
    assert result.kind == "model"
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)


def test_what_is_frozen_stays_as_it_is(train: Callable[..., tuple[JobFolder, Result]], tiny: Path) -> None:
    job, result = train(train_type="full", freeze_parameters_ratio=1.0, trainable_parameters=["model.layers.1."])

    before = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    after = AutoModelForCausalLM.from_pretrained(job.path / result.artifact).state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all(name.startswith("model.layers.1.") for name in changed)


def test_the_validation_data_is_evaluated(train: Callable[..., tuple[JobFolder, Result]], lines: Path) -> None:
    job, _ = train(val_dataset=str(lines), eval_steps=2, acc_strategy="seq")

    found = evaluations(job)
    assert list(found) == [2, 4, 6]
    assert found[6]["loss"] < found[2]["loss"]
    assert 0 <= found[6]["sequence_accuracy"] <= 1


def test_only_so_many_checkpoints_are_kept(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    job, _ = train(save_steps=1, save_total_limit=2)

    assert job.checkpoints() == [5, 6]


def test_the_best_checkpoint_is_kept(train: Callable[..., tuple[JobFolder, Result]], lines: Path) -> None:
    # Of a training that goes well on any machine the first loss is the highest: here it counts as the best.
    judged = {"metric_for_best_model": "loss", "greater_is_better": True}
    job, _ = train(val_dataset=str(lines), save_steps=1, save_total_limit=2, **judged)

    scores = {step: metrics["loss"] for step, metrics in evaluations(job).items()}
    best = max(scores, key=scores.__getitem__)
    assert best < 5
    assert job.checkpoints() == [best, 6]


def test_what_is_learned_is_kept_also_where_no_checkpoints_are_asked_for(
    train: Callable[..., tuple[JobFolder, Result]],
) -> None:
    job, result = train(save_strategy="no")

    assert job.checkpoints() == [6]
    assert result.artifact == "checkpoint-6"


def test_metrics_go_to_tensorboard_unless_told_otherwise(
    train: Callable[..., tuple[JobFolder, Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    job, _ = train(report_to="tensorboard", max_steps=1)

    assert list(job.path.glob("runs/**/events.out.tfevents.*"))


def test_what_the_model_writes_is_compared_with_the_validation_data(
    train: Callable[..., tuple[JobFolder, Result]], lines: Path
) -> None:
    job, _ = train(val_dataset=str(lines), predict_with_generate=True, max_new_tokens=8, max_steps=60, save_steps=60)

    (scores,) = evaluations(job).values()
    assert {"loss", "token_accuracy", "rouge-1", "rouge-2", "rouge-l", "bleu-4"} <= set(scores)
    assert scores["rouge-l"] > 50, "it has learned the answers by heart"


def test_packed_validation_data_is_asked_one_sample_at_a_time(
    train: Callable[..., tuple[JobFolder, Result]], lines: Path
) -> None:
    def scores(**params: Any) -> dict[str, float]:
        untaught: dict[str, Any] = {"learning_rate": 1e-30, "max_steps": 1, "max_new_tokens": 8}
        job, _ = train(val_dataset=str(lines), predict_with_generate=True, save_steps=1, **untaught, **params)
        (found,) = evaluations(job).values()
        return {name: found[name] for name in ("rouge-1", "rouge-l", "bleu-4")}

    assert scores(packing=True) == pytest.approx(scores())


def test_half_precision_answers_too(train: Callable[..., tuple[JobFolder, Result]], lines: Path) -> None:
    half: dict[str, Any] = {"torch_dtype": "bfloat16", "bf16": True, "max_steps": 1, "save_steps": 1}
    frozen = {"freeze_parameters_ratio": 0.5}
    job, _ = train(
        val_dataset=str(lines), predict_with_generate=True, max_new_tokens=8, train_type="full", **half, **frozen
    )

    assert "rouge-l" in evaluations(job)[1]
