"""Classification: what transformers' own trainer computes on the same texts, and what a job adds to it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from engines.errors import InvalidRequest, UnsupportedModel
from tests.training.jobs import BRIEF, WORDS, each_step, trained
from training.folder import Evaluation, JobFolder
from training.params.sft import SftParams
from training.params.task import SftTask
from training.refusals.supported import refusals

TEXTS = [" ".join(WORDS[i % 5 : i % 5 + 1 + i % 4]) for i in range(12)]
LABELS: dict[str, list[Any]] = {
    "single_label_classification": [i % 3 for i in range(12)],
    "multi_label_classification": [[[], [0], [2], [0, 1]][i % 4] for i in range(12)],
    "regression": [i % 5 / 2 - 1 for i in range(12)],
}
NUM_LABELS = {"single_label_classification": 3, "multi_label_classification": 3, "regression": 1}
SETTINGS = BRIEF | {"task_type": "seq_cls", "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0}


@pytest.fixture
def train(tiny: Path, tmp_path: Path) -> Callable[..., JobFolder]:
    """Run a job on TEXTS with the labels of a problem; returns its folder."""

    def run(problem: str, name: str = "job", **params: Any) -> JobFolder:
        file = tmp_path / f"{problem}.jsonl"
        rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS[problem], strict=True)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = SETTINGS | {"model": str(tiny), "dataset": [str(file)], "num_labels": NUM_LABELS[problem]} | params
        if problem == "multi_label_classification":
            given |= {"problem_type": problem}
        if "eval_strategy" in params:
            given["val_dataset"] = [str(file)]
        asked = {name: value for name, value in given.items() if value is not None}
        return trained(tmp_path / name, "sft", **asked)

    return run


def evaluation(folder: JobFolder) -> dict[str, float]:
    return [event.metrics for event, _ in folder.read_events() if isinstance(event, Evaluation)][-1]


def steps_of_transformers(base: Path, folder: Path, problem: str) -> list[dict[str, float]]:
    set_seed(42)  # as a job does, before head and adapter are drawn
    count = NUM_LABELS[problem]
    config = AutoConfig.from_pretrained(base, num_labels=count)
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config, dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    tokenizer = AutoTokenizer.from_pretrained(base, pad_token="<bos>")
    labels = LABELS[problem]
    if problem == "multi_label_classification":
        labels = [[float(each in several) for each in range(count)] for several in labels]
    rows = [{**tokenizer(text), "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    names = ("per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "max_steps", "logging_steps")
    trainer = Trainer(
        get_peft_model(model, lora),
        args=TrainingArguments(
            str(folder), **{name: SETTINGS[name] for name in names}, use_cpu=True, report_to="none", save_strategy="no",
            weight_decay=0.1, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    trainer.train()
    return [log for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("problem", LABELS)
def test_the_losses_and_gradients_are_those_of_transformers(
    train: Callable[..., JobFolder], tiny: Path, tmp_path: Path, problem: str
) -> None:
    found, expected = each_step(train(problem)), steps_of_transformers(tiny, tmp_path / "transformers", problem)
    for name in ("loss", "grad_norm"):
        told = [metrics[name] for metrics in expected]
        assert [metrics[name] for metrics in found] == pytest.approx(told, abs=1e-4), name


@pytest.mark.parametrize(
    "kind",
    [{"train_type": "adalora", "adalora_init_r": 4, "adalora_target_r": 2}, {"train_type": "vera", "vera_rank": 8}],
    ids=["adalora", "vera"],
)
def test_other_kinds_of_adapters_learn_beside_the_head_and_load_in_peft(
    train: Callable[..., JobFolder], tiny: Path, kind: dict[str, Any]
) -> None:
    none = {"lora_rank": None, "lora_alpha": None, "lora_dropout": None}
    problem = "single_label_classification"
    folder = train(problem, eval_strategy="steps", eval_steps=6, **none, **kind)
    checkpoint = folder.path / "checkpoint-6"
    config = AutoConfig.from_pretrained(checkpoint)
    base = AutoModelForSequenceClassification.from_pretrained(tiny, config=config, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with torch.inference_mode():
        said = torch.stack([model(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS])
    right = (said.argmax(1) == torch.tensor(LABELS[problem])).float().mean().item()
    assert evaluation(folder)["accuracy"] == pytest.approx(right)
    assert said.std() > 0


def test_accumulated_batches_count_as_one(train: Callable[..., JobFolder]) -> None:
    """transformers' trainer takes the head's loss for one that was divided by all of them."""
    problem, first = "single_label_classification", {"max_steps": 1}
    whole = each_step(train(problem, "whole", **first, per_device_train_batch_size=4))[0]
    parts = each_step(train(problem, "parts", **first, gradient_accumulation_steps=2))[0]
    assert [parts["loss"], parts["grad_norm"]] == pytest.approx([whole["loss"], whole["grad_norm"]], abs=1e-4)


@pytest.mark.parametrize("kind", [{}, {"train_type": "full", "learning_rate": 1e-3}], ids=["lora", "full"])
@pytest.mark.parametrize("problem", LABELS)
def test_what_was_trained_is_measured_and_loads_in_transformers_and_peft_alone(
    train: Callable[..., JobFolder], tiny: Path, problem: str, kind: dict[str, Any]
) -> None:
    own = {"lora_rank": None, "lora_alpha": None, "lora_dropout": None} if kind else {}
    folder = train(problem, eval_strategy="steps", eval_steps=6, **kind, **own)
    checkpoint = folder.path / "checkpoint-6"
    config = AutoConfig.from_pretrained(checkpoint)
    assert (config.num_labels, config.problem_type) == (NUM_LABELS[problem], problem)
    assert config.architectures == ["LlamaForSequenceClassification"]
    assert len(config.id2label) == NUM_LABELS[problem]
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint if kind else tiny, config=config)
    if not kind:
        assert json.loads((checkpoint / "adapter_config.json").read_text())["modules_to_save"] == ["score"]
        model = PeftModel.from_pretrained(model, checkpoint)
    batch = AutoTokenizer.from_pretrained(checkpoint)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    assert logits.std() > 0.1
    said, labels = evaluation(folder), LABELS[problem]
    if problem == "regression":
        errors = logits[:, 0] - torch.tensor(labels)
        told = {"loss": errors.square().mean(), "mse": errors.square().mean(), "mae": errors.abs().mean()}
    elif problem == "single_label_classification":
        right = logits.argmax(-1) == torch.tensor(labels)
        told = {
            "loss": torch.nn.functional.cross_entropy(logits, torch.tensor(labels)),
            "accuracy": right.float().mean(),
        }
    else:
        wanted = torch.tensor([[each in several for each in range(3)] for several in labels])
        true = (wanted & (logits > 0)).sum()
        told = {
            "loss": torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted.float()),
            "accuracy": ((logits > 0) == wanted).all(-1).float().mean(),
            "micro_f1": 2 * true / (2 * true + ((logits > 0) ^ wanted).sum()),
        }
    assert {name: said[name] for name in told} == pytest.approx({n: t.item() for n, t in told.items()}, abs=1e-5)


def test_what_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(train: Callable[..., JobFolder]) -> None:
    for problem in LABELS:
        whole = train(problem, f"{problem}-whole")
        resumed = train(problem, f"{problem}-on", resume_from_checkpoint=str(whole.path / "checkpoint-3"))
        told = [(metrics["loss"], metrics["grad_norm"]) for metrics in each_step(whole)][3:]
        found = [(metrics["loss"], metrics["grad_norm"]) for metrics in each_step(resumed)]
        assert sum(found, ()) == pytest.approx(sum(told, ()), abs=1e-5)


def test_the_args_of_a_checkpoint_say_what_its_head_is(train: Callable[..., JobFolder]) -> None:
    """So that training goes on without their being said again."""
    problem = "multi_label_classification"
    first = train(problem, "first")
    saved = json.loads((first.path / "checkpoint-6" / "args.json").read_text())
    assert [saved[name] for name in ("task_type", "num_labels", "problem_type")] == ["seq_cls", 3, problem]
    own = {"lora_rank": None, "lora_alpha": None, "lora_dropout": None, "num_labels": None}
    again = train(problem, "again", adapters=[str(first.path / "checkpoint-6")], **own)
    assert each_step(again)[0]["loss"] < each_step(first)[0]["loss"]


def test_a_head_that_is_there_says_how_many_labels_it_has(train: Callable[..., JobFolder]) -> None:
    full = {"train_type": "full", "lora_rank": None, "lora_alpha": None, "lora_dropout": None, "load_args": False}
    problem = "single_label_classification"
    trained = str(train(problem, "trained", **full).path / "checkpoint-6")
    assert len(each_step(train(problem, "again", model=trained, num_labels=None, **full))) == 6
    with pytest.raises(UnsupportedModel, match="head has 3, not 4") as refused:
        train(problem, "other", model=trained, **full | {"num_labels": 4})
    assert refused.value.param == "num_labels"


def test_the_best_of_a_regression_has_the_least_error(train: Callable[..., JobFolder]) -> None:
    folder = train("regression", eval_strategy="steps", eval_steps=3, metric_for_best_model="mse")
    state = json.loads((folder.path / "checkpoint-6" / "trainer_state.json").read_text())
    errors = [event.metrics["mse"] for event, _ in folder.read_events() if isinstance(event, Evaluation)]
    assert state["best_metric"] == pytest.approx(min(errors), abs=1e-6) != max(errors)


def test_a_new_head_needs_a_number_of_labels(train: Callable[..., JobFolder]) -> None:
    with pytest.raises(InvalidRequest, match="how many labels") as refused:
        train("single_label_classification", num_labels=None)
    assert refused.value.param == "num_labels"


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"packing": True}, ("packing", "only task_type causal_lm reads it")),
        ({"predict_with_generate": True}, ("predict_with_generate", "only task_type causal_lm reads it")),
        ({"num_labels": 3, "problem_type": "regression"}, ("problem_type", "a regression has 1")),
        ({"num_labels": 1, "problem_type": "single_label_classification"}, ("problem_type", "classes are several")),
        ({"task_type": "causal_lm", "num_labels": 3}, ("num_labels", "only task_type seq_cls reads it")),
        ({"num_labels": 3, "metric_for_best_model": "mse", "val_dataset": "v"}, ("metric_for_best_model", "accuracy")),
    ],
)
def test_what_it_does_not_support_is_refused_by_name(params: dict[str, Any], told: tuple[str, str]) -> None:
    task = SftTask(params=SftParams.model_validate({"task_type": "seq_cls", "model": "m"} | params))
    assert told[1] in dict(refusals(task))[told[0]]
