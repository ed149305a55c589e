"""KTO: what TRL computes on the same rows, what a set out of balance is told, and what a job adds."""

import json
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from trl import KTOConfig, KTOTrainer

from engines.errors import InvalidRequest
from tests.engines.pt.tiny import CONFIGS, save
from tests.training.jobs import BRIEF, each_step, trained
from training.folder import Evaluation, JobFolder, Message
from training.params.rlhf import RlhfParams
from training.params.task import RlhfTask
from training.refusals.supported import refusals
from training.trainers.batches.collate import Judged

ANSWERS = ["the red and", "blue", "the blue value", "one two three"]
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"number {i}"}],
        "completion": [{"role": "assistant", "content": ANSWERS[i % 4]}],
        "label": i % 4 < 2,
    }
    for i in range(12)
]
SETTINGS = BRIEF | {"rlhf_type": "kto", "per_device_train_batch_size": 4, "lora_rank": 4, "lora_alpha": 8}
METRICS = [f"{name}/{answer}" for name in ("rewards", "logps") for answer in ("chosen", "rejected")]
METRICS += ["rewards/margins", "kl", "entropy", "grad_norm", "loss"]


@pytest.fixture
def train(tiny: Path, tmp_path: Path) -> Callable[..., JobFolder]:
    """Run a job; returns its folder."""

    def run(name: str = "job", rows: list[dict[str, Any]] = ROWS, **params: Any) -> JobFolder:
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        shared = {name: value for name, value in SETTINGS.items() if "lora" not in name or "train_type" not in params}
        given = shared | {"model": str(tiny), "dataset": [str(data)]} | params
        if "eval_strategy" in params:
            given["val_dataset"] = [str(data)]
        return trained(tmp_path / name, "rlhf", **given)

    return run


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come as they are in the set, where TRL has them, as it pairs prompts with other answers beforehand."""
    monkeypatch.setattr(Trainer, "_get_train_sampler", lambda self, *_: SequentialSampler(self.train_dataset))


def by_trl(base: Path, folder: Path, rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, float]]:
    lora, other = not settings.pop("full", False), settings.pop("ref_model", None)
    names = ("per_device_train_batch_size", "learning_rate", "lr_scheduler_type", "max_steps", "logging_steps")
    arguments = {name: SETTINGS[name] for name in names} | settings
    trainer = KTOTrainer(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        ref_model=other and AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32),
        args=KTOConfig(
            str(folder), **arguments, bf16=False, use_cpu=True, report_to="none", save_strategy="no", weight_decay=0.1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
    )  # fmt: skip
    trainer.train()
    return [log for log in trainer.state.log_history if "loss" in log]


GOOD_ONES = [row for row in ROWS if row["label"]]
BAD_ONES = [row for row in ROWS if not row["label"]]
FULL = {"train_type": "full", "learning_rate": 1e-3}
UNEVEN = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
"""Of 11 rows, two batches of four and then one of three."""
ALIKE: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "lora": (ROWS, {}, {}),
    "weights": (
        ROWS,
        {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.2},
        {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.2},
    ),
    "apo": (ROWS, {"loss_type": "apo_zero_unpaired"}, {"loss_type": "apo_zero_unpaired"}),
    "full": (ROWS, FULL, {"full": True, "learning_rate": 1e-3}),
    "only good ones in a batch": ([*GOOD_ONES[:4], *BAD_ONES[:4], *ROWS[:4]], {}, {}),
    "only good ones": (GOOD_ONES[:4], {}, {}),
    "only bad ones": (BAD_ONES[:4], {}, {}),
    "uneven": (ROWS[:11], UNEVEN, UNEVEN),
    "accumulated": (ROWS, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
                    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
}  # fmt: skip


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize(("rows", "params", "settings"), ALIKE.values(), ids=ALIKE)
def test_losses_gradients_and_metrics_are_trls(
    train: Callable[..., JobFolder],
    tiny: Path,
    tmp_path: Path,
    rows: list[dict[str, Any]],
    params: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    found, theirs = each_step(train(rows=rows, **params)), by_trl(tiny, tmp_path / "trl", rows, **settings)
    assert len(found) == len(theirs) == 6
    told = {name for log in theirs for name in METRICS if name in log}
    if params.get("loss_type") == "apo_zero_unpaired":
        told -= {"kl"}  # there is none
    if "gradient_accumulation_steps" in params:
        told = {"loss", "grad_norm", "kl"}  # the others are means of batches there, of answers here
    for name in told:
        expected = [log.get(name, nan) for log in theirs]
        assert [log.get(name, nan) for log in found] == pytest.approx(expected, abs=1e-4, rel=1e-4, nan_ok=True), name


@pytest.mark.usefixtures("in_order")
def test_another_reference_model_is_compared_with(train: Callable[..., JobFolder], tiny: Path, tmp_path: Path) -> None:
    other = save(CONFIGS["llama"](), tmp_path / "other", seed=1)
    found = each_step(train(ref_model=str(other), max_steps=2))
    theirs = by_trl(tiny, tmp_path / "trl", ROWS, ref_model=other, max_steps=2)
    for name in METRICS:
        assert [log[name] for log in found] == pytest.approx([log[name] for log in theirs], abs=1e-4, rel=1e-4), name
    assert found[0]["rewards/chosen"] != pytest.approx(0, abs=1e-3)


def test_good_answers_gain_on_bad_ones(train: Callable[..., JobFolder]) -> None:
    folder = train(max_steps=9, eval_strategy="steps", eval_steps=3)
    told = [event.metrics for event, _ in folder.read_events() if isinstance(event, Evaluation)]
    assert told[2]["rewards/margins"] > told[0]["rewards/margins"] > 0
    assert told[2]["loss"] < told[0]["loss"]
    assert each_step(folder)[-1]["rewards/margins"] > 0.3


@pytest.mark.parametrize(
    "params",
    [{"streaming": True}, {"use_dora": True}, {"bf16": True}],
    ids=["streamed", "dora", "bfloat16"],
)
def test_they_gain_whatever_the_data_the_adapter_and_the_type(
    train: Callable[..., JobFolder], params: dict[str, Any]
) -> None:
    told = each_step(train(max_steps=9, **params))
    assert told[-1]["rewards/margins"] > told[1].get("rewards/margins", 0) + 0.01


@pytest.mark.parametrize("params", [{}, FULL], ids=["lora", "full"])
def test_what_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(
    train: Callable[..., JobFolder], params: dict[str, Any]
) -> None:
    whole = train("whole", **params)
    resumed = train("resumed", resume_from_checkpoint=str(whole.path / "checkpoint-3"), **params)
    for name in ("loss", "grad_norm", "rewards/margins", "kl"):
        expected = [metrics.get(name) for metrics in each_step(whole)[3:]]
        assert [metrics.get(name) for metrics in each_step(resumed)] == pytest.approx(expected, abs=1e-6), name


@pytest.mark.parametrize(
    ("rows", "params", "told"),
    [
        (ROWS, {}, None),
        (ROWS[:7], {}, None),  # four good ones and three bad ones
        (
            [*GOOD_ONES, *BAD_ONES[:2]],
            {},
            (
                "6 answers are good and 2 are bad ones, and with these weights one kind outweighs the other: set "
                "desirable_weight to 0.33 to 0.44, or undesirable_weight to 2.25 to 3.00."
            ),
        ),
        ([*GOOD_ONES, *BAD_ONES[:2]], {"undesirable_weight": 2.5}, None),
        ([*GOOD_ONES, *BAD_ONES[:2]], {"desirable_weight": 0.4}, None),
        (GOOD_ONES, {}, "All 6 answers are good ones: nothing says what to prefer to what."),
        (BAD_ONES, {}, "All 6 answers are bad ones: nothing says what to prefer to what."),
    ],
)
def test_a_set_out_of_balance_is_told_with_the_weights_that_suit_it(
    train: Callable[..., JobFolder], rows: list[dict[str, Any]], params: dict[str, Any], told: str | None
) -> None:
    folder = train(rows=rows, max_steps=1, per_device_train_batch_size=2, **params)
    warned = [
        event.message for event, _ in folder.read_events() if isinstance(event, Message) and "answers" in event.message
    ]
    assert warned == ([] if told is None else [told])


def test_each_prompt_also_has_the_answer_before_its_own_within_the_length() -> None:
    rows = [
        {"prompt_ids": [1, 2], "completion_ids": [3], "label": True},
        {"prompt_ids": [4], "completion_ids": [5, 6, 7], "label": False},
    ]
    batch = Judged(0, max_length=4)(rows)
    assert batch["good"].tolist() == [True, False]
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0], [4, 5, 6, 7]]
    assert batch["mismatched_input_ids"].tolist() == [[1, 2, 5, 6], [4, 3, 0, 0]]
    assert batch["mismatched_labels"].tolist() == [[-100, -100, 5, 6], [-100, 3, -100, -100]]
    assert not any("mismatched" in name for name in Judged(0, max_length=4)(rows[:1])), "its own answer is no other's"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"per_device_train_batch_size": 1}, "per_device_train_batch_size", "2 at least"),
    ({"loss_type": "bco"}, "loss_type", "choose kto or apo_zero_unpaired"),
    ({"lora_dropout": 0.1}, "lora_dropout", "trains without dropout"),
    ({"ref_model_revision": "v2"}, "ref_model_revision", "it belongs to ref_model"),
    ({"label_smoothing": 0.1}, "label_smoothing", ""),
    ({"desirable_weight": 0, "undesirable_weight": 0}, "desirable_weight", "nothing is learned"),
]


@pytest.mark.parametrize(("params", "param", "why"), REFUSED)
def test_what_kto_cannot_do_is_refused_by_name(params: dict[str, Any], param: str, why: str) -> None:
    asked = RlhfParams.model_validate(SETTINGS | {"model": "m", "dataset": "d"} | params)
    assert why in dict(refusals(RlhfTask(task="rlhf", params=asked)))[param]


def test_without_a_divergence_a_single_answer_will_do(train: Callable[..., JobFolder]) -> None:
    folder = train(max_steps=1, per_device_train_batch_size=1, loss_type="apo_zero_unpaired")
    assert "kl" not in each_step(folder)[0]


def test_pairs_are_judged_answers_too(train: Callable[..., JobFolder]) -> None:
    pairs = [{"prompt": "a", "chosen": " red", "rejected": " blue"}, {"prompt": "b", "chosen": " 1", "rejected": " 2"}]
    assert {"rewards/chosen", "rewards/rejected"} <= set(each_step(train(rows=pairs, max_steps=1))[0])


def test_answers_that_nobody_judged_are_refused(train: Callable[..., JobFolder]) -> None:
    with pytest.raises(InvalidRequest, match="label: there is none"):
        train(rows=[{name: row[name] for name in ("prompt", "completion")} for row in ROWS], strict=True)
