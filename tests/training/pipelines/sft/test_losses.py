"""What supervised training learns: what TRL alone would have learned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from engines.errors import TuneserveError
from tests.training.jobs import losses, make_model
from tests.training.pipelines.sft.runs import QUICK, weights
from training.data import build
from training.folder import Checkpoint, JobFolder, Result
from training.params.sft import SftParams
from training.report import Diverged
from training.trainers.supervised import SupervisedTrainer


def trl_losses(
    tiny: Path,
    lines: Path,
    folder: Path,
    *,
    router_aux_loss_coef: float | None = None,
    accumulated: int = 1,
    **more: Any,
) -> list[float]:
    """What TRL's own trainer says, of the same tokens."""
    set_seed(42)
    params = SftParams.model_validate({"model": str(tiny), "dataset": str(lines), **QUICK})
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    arguments = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=2, max_steps=6, logging_steps=1, learning_rate=1e-2,
        weight_decay=0.1, lr_scheduler_type="cosine", max_length=None, save_strategy="no", use_cpu=True, bf16=False,
        dataset_kwargs={"skip_prepare_dataset": True}, report_to=[], seed=42, data_seed=42,
        router_aux_loss_coef=router_aux_loss_coef, gradient_accumulation_steps=accumulated,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    data = build(params, tokenizer, learns="answers").train
    trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer, **more)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_loss_of_lora_is_trls_own(
    train: Callable[..., tuple[JobFolder, Result]], tiny: Path, lines: Path, tmp_path: Path
) -> None:
    job, _ = train(lora_rank=4, lora_alpha=8)

    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = trl_losses(tiny, lines, tmp_path / "trl", peft_config=lora)
    assert list(losses(job).values()) == pytest.approx(theirs, abs=1e-4)
    assert theirs[-1] < theirs[0]


def test_the_loss_of_full_training_is_trls_own(
    train: Callable[..., tuple[JobFolder, Result]], tiny: Path, lines: Path, tmp_path: Path
) -> None:
    job, _ = train(train_type="full")

    assert list(losses(job).values()) == pytest.approx(trl_losses(tiny, lines, tmp_path / "trl"), abs=1e-4)


@pytest.mark.parametrize("coef", [None, 0.0, 0.5])
@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_the_loss_of_a_mixture_of_experts_is_trls_own(
    train: Callable[..., tuple[JobFolder, Result]], lines: Path, tmp_path: Path, coef: float | None, train_type: str
) -> None:
    model = make_model(tmp_path / "model", "mixtral")
    targets = ["q_proj", "v_proj"]
    shape: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8, "target_modules": targets} if train_type == "lora" else {}
    job, _ = train(
        model=str(model), train_type=train_type, router_aux_loss_coef=coef, gradient_accumulation_steps=2, **shape
    )

    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    more = {"peft_config": lora} if shape else {}
    theirs = trl_losses(model, lines, tmp_path / "trl", router_aux_loss_coef=coef, accumulated=2, **more)
    assert list(losses(job).values()) == pytest.approx(theirs, abs=1e-4)


def test_with_lora_plus_the_second_matrix_learns_faster(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    plain, _ = train(max_steps=1)
    plus, _ = train(max_steps=1, lorap_lr_ratio=16)

    moved = {name: (plain_w, weights(plus, 1)[name]) for name, plain_w in weights(plain, 1).items()}
    assert all(b.abs().sum() > 4 * a.abs().sum() for name, (a, b) in moved.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "params",
    [{"weight_decay": 0.9}, {"warmup_ratio": 0.9}, {"lr_scheduler_type": "constant"}, {"max_grad_norm": 1e-4},
     {"neftune_noise_alpha": 15}, {"gradient_accumulation_steps": 2}, {"seed": 1}, {"data_seed": 1},
     {"learning_rate": 1e-3}, {"per_device_train_batch_size": 3}],
    ids=lambda params: next(iter(params)),
)  # fmt: skip
def test_a_parameter_of_the_trainer_changes_what_is_learned(
    train: Callable[..., tuple[JobFolder, Result]], params: dict[str, Any]
) -> None:
    before, _ = train(max_steps=2)
    after, _ = train(**{"max_steps": 2, **params})

    first, second = weights(before, 2), weights(after, 2)
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("params", [{"gradient_checkpointing": False}, {"dataloader_num_workers": 1}], ids=str)
def test_how_it_is_computed_changes_nothing(
    train: Callable[..., tuple[JobFolder, Result]], params: dict[str, Any]
) -> None:
    before, _ = train(max_steps=2)
    after, _ = train(**params, max_steps=2)

    assert losses(after) == pytest.approx(losses(before), abs=1e-5)


def test_a_loss_that_is_no_number_ends_the_training(train: Callable[..., tuple[JobFolder, Result]]) -> None:
    with pytest.raises(Diverged, match="learning_rate"):
        train(train_type="full", learning_rate=1e30, max_grad_norm=0, lr_scheduler_type="constant", weight_decay=0)


@pytest.mark.parametrize("lost", ["loss", "gradients"])
def test_what_is_no_number_between_two_logs_is_in_no_checkpoint(
    train: Callable[..., tuple[JobFolder, Result]], jobs: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    computed = SupervisedTrainer.training_step

    def poisoned(trainer: Any, model: Any, *given: Any) -> torch.Tensor:
        loss = computed(trainer, model, *given)
        if trainer.state.global_step == 6 and lost == "loss":
            return loss + float("nan")
        if trainer.state.global_step == 6:
            next(weight for weight in model.parameters() if weight.requires_grad).grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(SupervisedTrainer, "training_step", poisoned)
    before = {*jobs.iterdir()}
    with pytest.raises(Diverged, match=r"step 10\b.*learning_rate"):
        train(max_steps=20, logging_steps=50, save_steps=5)

    (job,) = (JobFolder(folder) for folder in {*jobs.iterdir()} - before)
    assert job.checkpoints() == [5]
    assert all(tensor.isfinite().all() for tensor in weights(job, 5).values())
    assert [event.step for event, _ in job.read_events() if isinstance(event, Checkpoint)] == [5]


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"target_modules": ["nothing_proj"]}, "target_modules"),
        ({"train_type": "full", "freeze_parameters_ratio": 1.0}, "freeze_parameters_ratio"),
        ({"train_type": "full", "freeze_parameters": ["no.such"]}, "freeze_parameters"),
        ({"torch_dtype": "float16"}, "torch_dtype"),
        ({"model": "/no/such/folder"}, "model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_trained_is_refused_by_name(
    train: Callable[..., tuple[JobFolder, Result]], params: dict[str, Any], param: str
) -> None:
    with pytest.raises(TuneserveError) as refused:
        train(**params)

    assert refused.value.param == param
