"""Preference training: what TRL computes on the same data, and what a job adds to it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import LlamaForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.engines.pt.adapters import save_adapter
from tests.engines.pt.tiny import CONFIGS, save
from tests.training.jobs import BRIEF, make_model, steps, trained
from training.data import build
from training.folder import Evaluation, JobFolder
from training.params.rlhf import RlhfParams
from training.params.sft import SftParams
from training.params.task import RlhfTask
from training.pipelines import train as pipeline
from training.refusals.supported import refusals
from training.report import Report
from training.trainers import precomputed

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"number {i}"}],
        "chosen": [{"role": "assistant", "content": "the red and"}],
        "rejected": [{"role": "assistant", "content": "the blue value"}],
    }
    for i in range(12)
]
SETTINGS = BRIEF | {"rlhf_type": "dpo"}
OF_DPO: dict[str, Any] = {"rpo_alpha": 0.0}
OF_LORA: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8}


@pytest.fixture(scope="session")
def base(tiny: Path) -> Path:
    return tiny


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same rows in a file, as people write them."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = [
        {"messages": row["prompt"] + row["chosen"], "rejected_response": row["rejected"][0]["content"]} for row in ROWS
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


@pytest.fixture
def train(base: Path, biased: Path, pairs: str, tmp_path: Path) -> Callable[..., JobFolder]:
    """Run a job on ROWS; returns its folder."""

    def run(name: str = "job", **params: Any) -> JobFolder:
        model = biased if "lora_bias" in params else base
        given: dict[str, Any] = SETTINGS | {"model": str(model), "dataset": [pairs]} | params
        given = (OF_DPO if given["rlhf_type"] == "dpo" else {}) | given
        given = (OF_LORA if params.keys().isdisjoint({"train_type", "adapters"}) else {}) | given
        if "eval_strategy" in params:
            given["val_dataset"] = [f"{pairs}#4"]
        return trained(tmp_path / name, "rlhf", **given)

    return run


def losses(folder: JobFolder) -> list[float]:
    return [metrics["loss"] for metrics in steps(folder).values()]


def losses_of_trl(
    base: Path,
    folder: Path,
    *,
    full: bool = False,
    how: tuple[Any, Any] = (DPOConfig, DPOTrainer),
    targets: Any = "all-linear",
    rows: Dataset | None = None,
    **settings: Any,
) -> list[float]:
    """`how`: TRL's configuration and trainer."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config, trainer_class = how
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    arguments = {
        name: SETTINGS[name]
        for name in ("per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "max_steps", "logging_steps")
    }
    trainer = trainer_class(
        model,
        args=config(
            str(folder), **arguments, bf16=False, use_cpu=True, report_to="none", save_strategy="no", weight_decay=0.1,
            disable_tqdm=True, **settings,
        ),
        train_dataset=Dataset.from_list(ROWS) if rows is None else rows,
        processing_class=tokenizer,
        peft_config=None if full else LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize(
    ("params", "settings"),
    [
        ({}, {}),
        ({"beta": 0.5}, {"beta": 0.5}),
        ({"rlhf_type": "ipo"}, {"loss_type": ["ipo"]}),
        ({"rpo_alpha": 0.7}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
        ({"train_type": "full", "learning_rate": 1e-3}, {"full": True, "learning_rate": 1e-3}),
    ],
    ids=["lora", "beta", "ipo", "rpo", "full"],
)
def test_the_loss_is_trls(
    train: Callable[..., JobFolder],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    params: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    monkeypatch.setitem(SETTINGS, "learning_rate", settings.pop("learning_rate", SETTINGS["learning_rate"]))
    found = losses(train(**params))
    assert found == pytest.approx(losses_of_trl(base, tmp_path / "trl", **settings), abs=1e-4)
    assert found[-1] < found[0]


@pytest.mark.parametrize(
    ("params", "how", "settings"),
    [
        ({"rlhf_type": "orpo", "beta": 0.5}, (ORPOConfig, ORPOTrainer), {"beta": 0.5}),
        (
            {"rlhf_type": "simpo", "cpo_alpha": 0.5, "simpo_gamma": 0.7, "label_smoothing": 0.1},
            (CPOConfig, CPOTrainer),
            {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.5, "simpo_gamma": 0.7, "label_smoothing": 0.1},
        ),
        ({"rlhf_type": "cpo"}, (CPOConfig, CPOTrainer), {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0}),
    ],
    ids=["orpo", "simpo", "cpo"],
)
def test_without_a_reference_the_loss_is_trls_too(
    train: Callable[..., JobFolder],
    base: Path,
    pairs: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    params: dict[str, Any],
    how: tuple[Any, Any],
    settings: dict[str, Any],
) -> None:
    monkeypatch.setattr(how[1], "tokenize_row", lambda _, row: row)  # our tokens: TRL's would end otherwise
    found = losses(train(lora_dropout=0.0, **params))
    theirs = losses_of_trl(base, tmp_path / "trl", how=how, rows=tokens_for_trl(base, pairs), **settings)
    assert found == pytest.approx(theirs, abs=1e-4)
    assert found[-1] < found[0]


def tokens_for_trl(base: Path, pairs: str) -> Dataset:
    """ROWS as CPOTrainer and ORPOTrainer have them after their own preparation."""
    params = RlhfParams.model_validate(SETTINGS | {"model": str(base), "dataset": pairs})
    rows = []
    for row in build(params, AutoTokenizer.from_pretrained(base), learns="pairs").train:
        prompt = row["prompt_ids"]
        made = {"prompt": "", "chosen": "", "rejected": "", "prompt_input_ids": prompt}
        made["prompt_attention_mask"] = [1] * len(prompt)
        for name in ("chosen", "rejected"):
            answer = row[f"{name}_ids"]
            made[f"{name}_input_ids"] = prompt + answer
            made[f"{name}_attention_mask"] = [1] * len(prompt + answer)
            made[f"{name}_labels"] = [-100] * len(prompt) + answer
        rows.append(made)
    return Dataset.from_list(rows)


@pytest.mark.parametrize("coef", [None, 0.5])
def test_the_loss_of_a_mixture_of_experts_is_trls(
    train: Callable[..., JobFolder], tmp_path: Path, coef: float | None
) -> None:
    model = make_model(tmp_path / "model", "mixtral")
    targets = ["q_proj", "v_proj"]
    found = losses(train(model=str(model), target_modules=targets, router_aux_loss_coef=coef))
    theirs = losses_of_trl(model, tmp_path / "trl", targets=targets, router_aux_loss_coef=coef)
    assert found == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("rlhf_type", ["orpo", "simpo", "cpo"])
def test_without_a_reference_the_model_is_asked_once_a_step(
    train: Callable[..., JobFolder], monkeypatch: pytest.MonkeyPatch, rlhf_type: str
) -> None:
    asked = []
    forward = LlamaForCausalLM.forward

    def counted(*given: Any, **named: Any) -> Any:
        asked.append(1)
        return forward(*given, **named)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    train(rlhf_type=rlhf_type, max_steps=2)
    assert len(asked) == 2


# ---- what the reference says, computed before training


@pytest.mark.parametrize(
    "params",
    [{}, {"init_weights": "false"}, {"train_type": "full", "learning_rate": 1e-3}],
    ids=["lora", "random", "full"],
)
def test_computed_before_training_the_reference_says_the_same(
    train: Callable[..., JobFolder], monkeypatch: pytest.MonkeyPatch, params: dict[str, Any]
) -> None:
    evaluated = params | {"eval_strategy": "steps", "eval_steps": 3}
    plain = train("plain", **evaluated)
    before = train("before", precompute_ref_log_probs=True, **evaluated)
    for metric in ("loss", "rewards/margins", "grad_norm"):
        found = [metrics[metric] for metrics in steps(before).values()]
        assert found == pytest.approx([metrics[metric] for metrics in steps(plain).values()], abs=1e-4), metric
    told = [[e.metrics["loss"] for e, _ in job.read_events() if isinstance(e, Evaluation)] for job in (plain, before)]
    assert told[0] == pytest.approx(told[1], abs=1e-4)

    monkeypatch.setattr(precomputed, "_computed", None)  # what goes on has them, and would fail
    resumed = train(
        "resumed", precompute_ref_log_probs=True, resume_from_checkpoint=str(before.path / "checkpoint-3"), **evaluated
    )
    assert told_apart(before, resumed) < 1e-6


def test_of_another_reference_it_is_computed_anew(train: Callable[..., JobFolder], base: Path, tmp_path: Path) -> None:
    other = save(CONFIGS["llama"](), tmp_path / "other", seed=1, tokenizer=True)
    first = train("first", precompute_ref_log_probs=True, max_steps=1)
    settings = {"max_steps": 2, "ref_model": str(other)}
    checkpoint = {"resume_from_checkpoint": str(first.path / "checkpoint-1")}
    before = train("before", precompute_ref_log_probs=True, **settings, **checkpoint)
    assert losses(before) == pytest.approx(losses(train("plain", **settings, **checkpoint)), abs=1e-4)


# ---- what is seen


def test_the_margin_of_what_is_preferred_rises(train: Callable[..., JobFolder]) -> None:
    logged = steps(train(eval_strategy="steps", eval_steps=3))
    assert logged[1]["rewards/margins"] == pytest.approx(0, abs=1e-6)  # model and reference are the same yet
    assert logged[6]["rewards/margins"] > 0.5
    assert logged[6]["rewards/accuracies"] == 1
    assert {"loss", "learning_rate", "grad_norm", "token_accuracy", "rewards/chosen", "rewards/rejected"} <= set(
        logged[6]
    )


def test_validation_data_is_measured_alike(train: Callable[..., JobFolder]) -> None:
    folder = train(eval_strategy="steps", eval_steps=3)
    told = [event for event, _ in folder.read_events() if isinstance(event, Evaluation)]
    assert [event.step for event in told] == [3, 6]
    assert told[1].metrics["rewards/margins"] > told[0].metrics["rewards/margins"] > 0
    assert told[1].metrics["loss"] < told[0].metrics["loss"]


def test_label_smoothing_is_dpos_own(train: Callable[..., JobFolder]) -> None:
    """TRL's sigmoid loss leaves it out, and its robust loss is another."""
    for metrics in steps(train(label_smoothing=0.2, per_device_train_batch_size=1)).values():
        margin = torch.tensor(metrics["rewards/margins"])
        expected = -0.8 * logsigmoid(margin) - 0.2 * logsigmoid(-margin)
        assert metrics["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_loraplus_has_b_learn_faster(train: Callable[..., JobFolder]) -> None:
    plain, plus = (
        load_file(train(name, max_steps=1, **params).path / "checkpoint-1" / "adapter_model.safetensors")
        for name, params in (("plain", {}), ("plus", {"lorap_lr_ratio": 8}))
    )
    b = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"  # Adam's first step is as long as the rate
    assert plus[b].abs().max() == pytest.approx(8 * plain[b].abs().max().item(), rel=1e-3)


# ---- resuming


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"use_dora": True},
        {"modules_to_save": ["embed_tokens"]},
        {"init_weights": "false"},
        {"init_weights": "pissa"},
        {"lora_bias": "all"},
        {"rlhf_type": "simpo"},
        {"train_type": "full", "learning_rate": 1e-3},
    ],
    ids=["lora", "dora", "saved", "random", "pissa", "biases", "no-reference", "full"],
)
def test_what_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(
    train: Callable[..., JobFolder], params: dict[str, Any]
) -> None:
    whole = train("whole", **params)
    resumed = train("resumed", resume_from_checkpoint=str(whole.path / "checkpoint-3"), **params)
    assert [*steps(resumed)] == [4, 5, 6]
    for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
        told = [metrics[name] for metrics in steps(whole).values()]
        assert [metrics[name] for metrics in steps(resumed).values()] == pytest.approx(told[3:], abs=1e-5), name
    assert told_apart(whole, resumed) < 1e-5


@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_the_reference_of_what_goes_on_is_what_training_began_with(
    train: Callable[..., JobFolder], train_type: str
) -> None:
    kind = {"train_type": train_type} | ({"learning_rate": 1e-3} if train_type == "full" else {})
    taught = str(train("taught", **kind).path / "checkpoint-6")
    rest = {**kind, "lora_rank": 8, "lora_alpha": 32, "load_args": False}  # the defaults, not the shape it has
    wholes = {"weights": train("weights", **rest, resume_from_checkpoint=taught, resume_only_model=True)}
    if train_type == "lora":
        wholes["adapter"] = train("adapter", **rest, adapters=[taught])
    for name, whole in wholes.items():
        again = whole.read_task().going_on_from(whole.path / "checkpoint-3").params
        resumed = train(f"{name}-resumed", **again.model_dump(exclude_unset=True))
        assert steps(whole)[1]["rewards/margins"] == pytest.approx(0, abs=1e-6)
        for metric in ("loss", "rewards/margins", "logps/chosen"):
            told = [metrics[metric] for metrics in steps(whole).values()][3:]
            assert [metrics[metric] for metrics in steps(resumed).values()] == pytest.approx(told, abs=1e-5), metric
        assert told_apart(whole, resumed) < 1e-5


def told_apart(first: JobFolder, second: JobFolder) -> float:
    """The largest difference between the weights at the end."""
    one, other = (load_file(next((job.path / "checkpoint-6").glob("*model.safetensors"))) for job in (first, second))
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_the_reference_is_no_part_of_a_checkpoint(train: Callable[..., JobFolder], base: Path) -> None:
    job = train()
    checkpoint = job.path / "checkpoint-6"
    assert not (job.path / "README.md").exists()  # TRL's card
    assert not any(path.is_dir() for path in checkpoint.iterdir())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), checkpoint)
    assert list(model.peft_config) == ["default"]


def test_with_an_adapter_the_reference_is_what_it_said_before(train: Callable[..., JobFolder]) -> None:
    """Not what the base model says."""
    first = train("first")
    second = steps(train("second", adapters=[str(first.path / "checkpoint-6")]))
    assert second[1]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert second[1]["logps/chosen"] > steps(first)[1]["logps/chosen"] + 1


@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_another_reference_can_be_named(
    train: Callable[..., JobFolder], base: Path, tmp_path: Path, train_type: str
) -> None:
    other = save(CONFIGS["llama"](), tmp_path / "other", seed=1, tokenizer=True)
    params = {"train_type": train_type, "max_steps": 1}
    logged = steps(train("other-reference", ref_model=str(other), **params))
    assert abs(logged[1]["rewards/margins"]) > 0.1
    same = steps(train("same-reference", ref_model=str(base), **params))
    assert same[1]["rewards/margins"] == pytest.approx(0, abs=1e-6)


def test_an_adapter_on_the_output_head_learns_too(train: Callable[..., JobFolder]) -> None:
    weights = load_file(train(target_modules=["lm_head", "q_proj"]).path / "checkpoint-6" / "adapter_model.safetensors")
    assert weights["base_model.model.lm_head.lora_B.weight"].abs().max() > 1e-3


def test_an_output_head_that_is_saved_whole_is_trained(train: Callable[..., JobFolder], base: Path) -> None:
    weights = load_file(train(modules_to_save=["lm_head"]).path / "checkpoint-6" / "adapter_model.safetensors")
    before = load_file(base / "model.safetensors")["lm_head.weight"]
    assert (weights["base_model.model.lm_head.weight"] - before).abs().max() > 1e-3


def test_data_may_be_streamed(train: Callable[..., JobFolder]) -> None:
    found = losses(train(streaming=True))
    assert len(found) == 6
    assert found[-1] < found[0]


def test_an_adapter_with_biases_is_compared_with_what_it_was(
    train: Callable[..., JobFolder], base: Path, tmp_path: Path
) -> None:
    logged = steps(train(adapters=[str(save_adapter(base, tmp_path / "adapter", bias="all"))]))
    assert logged[1]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert logged[6]["rewards/margins"] > 0.5


def test_what_dpo_does_not_read_is_not_taken_from_the_training_before(
    train: Callable[..., JobFolder], base: Path, lines: Path, tmp_path: Path
) -> None:
    folder = JobFolder(tmp_path / "sft")
    folder.path.mkdir()
    settings = {"model": str(base), "dataset": str(lines), "split_dataset_ratio": 0, "report_to": "none"}
    taught = {"max_steps": 1, "packing": True, "max_length": 64, "padding_side": "left"}
    pipeline.run(SftParams.model_validate(settings | taught), Report(folder))
    train(adapters=[str(folder.path / "checkpoint-1")], max_steps=1)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"lora_dropout": 0.1}, ("lora_dropout", "without dropout")),
        ({"label_smoothing": 0.5}, ("label_smoothing", "choose less")),
        ({"loss_type": "best"}, ("loss_type", "best is not supported in this version; choose sigmoid or")),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, ("label_smoothing", "the loss hinge does not read it")),
        ({"loss_type": "exo_pair"}, ("label_smoothing", "needs more than 0")),
        ({"loss_type": "ipo", "beta": 0}, ("beta", "divides by it")),
        ({"rlhf_type": "ipo", "loss_type": "ipo"}, ("loss_type", "only rlhf_type dpo or cpo")),
        ({"precompute_ref_log_probs": True, "streaming": True}, ("precompute_ref_log_probs", "streamed data")),
        ({"rlhf_type": "orpo", "precompute_ref_log_probs": True}, ("precompute_ref_log_probs", "dpo or ipo reads it")),
        ({"rlhf_type": "orpo", "ref_model": "m"}, ("ref_model", "only rlhf_type dpo or ipo")),
        ({"rlhf_type": "simpo", "ref_model": "m"}, ("ref_model", "only rlhf_type dpo or ipo")),
        ({"rlhf_type": "cpo", "loss_type": "simpo"}, ("loss_type", "choose sigmoid or hinge or ipo")),
        ({"ref_model_type": "llama"}, ("ref_model_type", "is not given")),
        ({"ref_model_revision": "main"}, ("ref_model_revision", "is not given")),
        ({"packing": True}, ("packing", "only sft and pt read it")),
        ({"lazy_tokenize": True}, ("lazy_tokenize", "only sft and pt read it")),
        ({"padding_side": "left"}, ("padding_side", "only sft and pt read it")),
        ({"reward_model": "m"}, ("reward_model", "only rlhf_type ppo")),
    ],
)
def test_what_it_does_not_support_is_refused_by_name(params: dict[str, Any], told: tuple[str, ...]) -> None:
    task = RlhfTask(params=RlhfParams.model_validate({"rlhf_type": "dpo", "model": "m"} | params))
    found = dict(refusals(task))
    assert told[1] in found[told[0]]
