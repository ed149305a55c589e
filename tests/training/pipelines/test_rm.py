"""Reward models: what TRL computes on the same pairs, and what a job adds to it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import RewardConfig, RewardTrainer

from engines.errors import InvalidRequest
from tests.engines.pt.adapters import save_adapter
from tests.training.jobs import BRIEF, each_step, make_model, trained
from tests.training.pipelines.test_rlhf import ROWS, told_apart
from training.folder import Evaluation, JobFolder
from training.params.export import MergeParams
from training.params.rlhf import RlhfParams
from training.params.task import RlhfTask
from training.pipelines import merge
from training.refusals.supported import refusals
from training.report import Report

SETTINGS = BRIEF | {"rlhf_type": "rm", "lora_rank": 4, "lora_alpha": 8}

ITS_OWN = {"lora_rank": 8, "lora_alpha": 32}
"""The defaults, which leave it to an adapter what it is."""


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(file)


@pytest.fixture
def train(tiny: Path, pairs: str, tmp_path: Path) -> Callable[..., JobFolder]:
    def run(name: str = "job", **params: Any) -> JobFolder:
        given = SETTINGS | {"model": str(tiny), "dataset": [pairs]} | params
        if given.get("train_type", "lora") != "lora":
            given = {name: value for name, value in given.items() if name not in ("lora_rank", "lora_alpha")}
        if "eval_strategy" in params:
            given["val_dataset"] = [pairs]
        return trained(tmp_path / name, "rlhf", **given)

    return run


def steps_of_trl(base: Path, folder: Path, *, full: bool = False, **settings: Any) -> list[dict[str, float]]:
    set_seed(42)  # as a job does, before head and adapter are drawn
    config = AutoConfig.from_pretrained(base, num_labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config, dtype=torch.float32)
    names = ("per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "max_steps", "logging_steps")
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    trainer = RewardTrainer(
        model if full else get_peft_model(model, lora),
        args=RewardConfig(
            str(folder), **{name: SETTINGS[name] for name in names} | settings, bf16=False, use_cpu=True,
            report_to="none", save_strategy="no", weight_decay=0.1, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(base, pad_token="<bos>"),
    )  # fmt: skip
    trainer.train()
    return [log for log in trainer.state.log_history if "loss" in log]


UNEVEN = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2}
"""Of 12 pairs, two batches of five and then one of two."""


@pytest.mark.parametrize(
    ("params", "settings"),
    [
        ({}, {}),
        ({"center_rewards_coefficient": 0.1}, {"center_rewards_coefficient": 0.1}),
        ({"train_type": "full", "learning_rate": 1e-3}, {"full": True, "learning_rate": 1e-3}),
        ({"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 2}),
        (UNEVEN, UNEVEN),
    ],
    ids=["lora", "centred", "full", "accumulated", "uneven"],
)
def test_the_losses_and_gradients_are_trls(
    train: Callable[..., JobFolder], tiny: Path, tmp_path: Path, params: dict[str, Any], settings: dict[str, Any]
) -> None:
    found, trls = each_step(train(**params)), steps_of_trl(tiny, tmp_path / "trl", **settings)
    names = ["loss", "grad_norm", "accuracy", "margin", "mean_reward", "min_reward", "max_reward"]
    if "gradient_accumulation_steps" in params:  # of several batches, TRL gives the mean of the least
        names = names[:-2]
    for name in names:
        told = [metrics[name] for metrics in trls]
        assert [metrics[name] for metrics in found] == pytest.approx(told, abs=1e-4), name
    assert found[-1]["loss"] < found[0]["loss"]


def test_validation_data_is_measured_alike(train: Callable[..., JobFolder]) -> None:
    folder = train(eval_strategy="steps", eval_steps=3, metric_for_best_model="margin")
    told = [event for event, _ in folder.read_events() if isinstance(event, Evaluation)]
    assert [event.step for event in told] == [3, 6]
    assert told[1].metrics["margin"] > told[0].metrics["margin"]
    assert {"loss", "accuracy", "margin", "mean_reward", "min_reward", "max_reward"} <= set(told[1].metrics)


KINDS: list[dict[str, Any]] = [
    {},
    {"init_weights": "pissa"},
    {"train_type": "full", "learning_rate": 1e-3},
    {"train_type": "adalora", "adalora_init_r": 4, "adalora_target_r": 2},
    {"train_type": "vera", "vera_rank": 8},
]
NAMES = ["lora", "pissa", "full", "adalora", "vera"]


@pytest.mark.parametrize("params", KINDS, ids=NAMES)
def test_what_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(
    train: Callable[..., JobFolder], params: dict[str, Any]
) -> None:
    whole = train("whole", **params)
    resumed = train("resumed", resume_from_checkpoint=str(whole.path / "checkpoint-3"), **params)
    for name in ("loss", "grad_norm", "margin", "mean_reward"):
        told = [metrics[name] for metrics in each_step(whole)][3:]
        assert [metrics[name] for metrics in each_step(resumed)] == pytest.approx(told, abs=1e-5), name
    assert told_apart(whole, resumed) < 1e-5


def load_alone(checkpoint: Path, base: Path) -> Any:
    """With nothing but transformers and PEFT."""
    adapter = (checkpoint / "adapter_config.json").is_file()
    config = AutoConfig.from_pretrained(checkpoint)
    assert config.architectures == ["LlamaForSequenceClassification"]
    model = AutoModelForSequenceClassification.from_pretrained(base if adapter else checkpoint, config=config)
    return (PeftModel.from_pretrained(model, checkpoint) if adapter else model).eval()


def rewards(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """Of the chosen answers, and of the rejected ones."""
    talks = [row["prompt"] + row[which] for which in ("chosen", "rejected") for row in rows]
    batch = tokenizer.apply_chat_template(talks, padding=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        found: torch.Tensor = model(**batch).logits.squeeze(-1)
    return found


@pytest.mark.parametrize("params", KINDS, ids=NAMES)
def test_what_was_trained_loads_in_transformers_and_peft_alone_and_merges(
    train: Callable[..., JobFolder], tiny: Path, tmp_path: Path, params: dict[str, Any]
) -> None:
    folder = train(eval_strategy="steps", eval_steps=6, **params)
    said = next(event.metrics for event, _ in folder.read_events() if isinstance(event, Evaluation))
    checkpoint = folder.path / "checkpoint-6"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found = rewards(load_alone(checkpoint, tiny), tokenizer, ROWS)
    margins = found[:12] - found[12:]
    assert found.std() > 0.1
    assert [found.mean(), found.min(), found.max(), margins.mean()] == pytest.approx(
        [said[f"{name}_reward"] for name in ("mean", "min", "max")] + [said["margin"]], abs=1e-5
    )
    if params.get("train_type") == "full":
        return
    merged = JobFolder(tmp_path / "merge")
    merged.path.mkdir()
    assert merge.run(MergeParams(adapters=(str(checkpoint),)), Report(merged)).task_type == "seq_cls"
    assert rewards(load_alone(merged.path / "merged", tiny), tokenizer, ROWS) == pytest.approx(found, abs=5e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen2", "opt"])
def test_models_of_other_families_get_a_head(train: Callable[..., JobFolder], tmp_path: Path, family: str) -> None:
    base = make_model(tmp_path / "base", family)
    folder = train(model=str(base), eval_strategy="steps", eval_steps=6)
    said = next(event.metrics for event, _ in folder.read_events() if isinstance(event, Evaluation))
    checkpoint = folder.path / "checkpoint-6"
    config = AutoConfig.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, checkpoint).eval()
    found = rewards(model, AutoTokenizer.from_pretrained(checkpoint), ROWS)
    assert [found.min(), found.max()] == pytest.approx([said["min_reward"], said["max_reward"]], abs=1e-4)


def test_the_margin_that_a_set_names_is_asked_for(train: Callable[..., JobFolder], tmp_path: Path) -> None:
    file = tmp_path / "margins.jsonl"
    file.write_text("".join(json.dumps({**row, "margin": 2.0}) + "\n" for row in ROWS))
    asked = each_step(train("asked", dataset=str(file), max_steps=1, per_device_train_batch_size=1))[0]
    assert asked["loss"] == pytest.approx(-logsigmoid(torch.tensor(asked["margin"] - 2)).item(), abs=1e-5)


def test_a_stream_is_learned_from_as_the_same_rows_are(train: Callable[..., JobFolder]) -> None:
    found = [metrics["loss"] for metrics in each_step(train(streaming=True))]
    assert found[-1] < found[0]


def test_in_bfloat16_the_head_learns_in_float32(train: Callable[..., JobFolder]) -> None:
    """Adam changes its weights by less than bfloat16 can tell from nothing."""
    checkpoint = train(torch_dtype="bfloat16", learning_rate=1e-4).path / "checkpoint-6"
    head = load_file(checkpoint / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert head.dtype == torch.float32
    assert (head != head.bfloat16().float()).float().mean() > 0.5


def test_the_last_token_is_judged_also_where_it_is_the_one_to_pad_with(
    train: Callable[..., JobFolder], tiny: Path, tmp_path: Path
) -> None:
    """transformers looks for the last token that is another than the one to pad with."""
    base = tmp_path / "pads-with-its-end"
    shutil.copytree(tiny, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = tokenizer.chat_template.replace("<eos>\n", "<eos>")
    tokenizer.save_pretrained(base)
    folder = train(model=str(base), eval_strategy="steps", eval_steps=6)
    said = next(event.metrics for event, _ in folder.read_events() if isinstance(event, Evaluation))
    model = load_alone(folder.path / "checkpoint-6", base)
    model.config.pad_token_id = None  # then it is the last one
    talks = [row["prompt"] + row[which] for which in ("chosen", "rejected") for row in ROWS]
    batches = (tokenizer.apply_chat_template(talk, return_dict=True, return_tensors="pt") for talk in talks)
    alone = [model(**batch).logits.item() for batch in batches]
    assert [min(alone), max(alone)] == pytest.approx([said["min_reward"], said["max_reward"]], abs=1e-5)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"lora_dropout": 0.1}, ("lora_dropout", "without dropout")),
        ({"num_labels": 2}, ("num_labels", "one number")),
        ({"beta": 0.2}, ("beta", "only rlhf_type dpo")),
        ({"rlhf_type": "dpo", "center_rewards_coefficient": 0.1}, ("center_rewards_coefficient", "only rlhf_type rm")),
        ({"rlhf_type": "dpo", "task_type": "seq_cls"}, ("task_type", "sft --task_type seq_cls or rlhf --rlhf_type rm")),
        ({"router_aux_loss_coef": 0.1}, ("router_aux_loss_coef", "no such loss")),
    ],
)
def test_what_it_does_not_support_is_refused_by_name(params: dict[str, Any], told: tuple[str, str]) -> None:
    task = RlhfTask(params=RlhfParams.model_validate({"rlhf_type": "rm", "model": "m"} | params))
    assert told[1] in dict(refusals(task))[told[0]]


def test_an_adapter_of_another_task_is_refused(train: Callable[..., JobFolder], tiny: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny, tmp_path / "adapter")
    with pytest.raises(InvalidRequest, match="for the task CAUSAL_LM") as refused:
        train(adapters=[str(adapter)], **ITS_OWN)
    assert refused.value.param == "adapters"


def test_a_reward_model_is_taught_further(train: Callable[..., JobFolder]) -> None:
    for name, params in {"adapter": {}, "full": {"train_type": "full", "learning_rate": 1e-3}}.items():
        first = train(f"first-{name}", **params)
        trained = str(first.path / "checkpoint-6")
        began = {"model": trained} if name == "full" else {"adapters": [trained], **ITS_OWN}
        again = train(f"again-{name}", **params | began)
        assert each_step(again)[0]["loss"] < each_step(first)[0]["loss"] - 0.1
