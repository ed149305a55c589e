"""Optimizers in whole trainings, and what does not go together with them."""

from typing import Any, get_args

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from engines.errors import InvalidRequest
from tests.training.jobs import evaluations, losses
from tests.training.optimizers.steps import tiny_model
from tests.training.optimizers.training import Training, same, state, weights
from training.optimizers import OPTIMIZERS, optimizer_of, refusals
from training.optimizers.lisa import Lisa, active
from training.optimizers.named import BITSANDBYTES, Named
from training.params.choices import Optim
from training.params.sft import SftParams

FULL: dict[str, Any] = {"train_type": "full"}
GALORE: dict[str, Any] = FULL | {"use_galore": True, "galore_rank": 4}


def test_each_weight_changed_at_once_comes_to_what_all_together_come_to(train: Training) -> None:
    once = train("once", **GALORE, max_grad_norm=0, galore_optim_per_parameter=True)
    together = train("together", **GALORE, max_grad_norm=0)
    assert losses(once) == losses(together)
    assert same(once, together, 0)


def test_of_the_layers_few_learn_at_a_time_and_others_after_a_while(train: Training) -> None:
    """Those of the steps 1 to 3, then those of 4 to 6."""
    lisa: dict[str, Any] = {"lisa_activated_layers": 1, "lisa_step_interval": 3, "seed": 1}
    params = SftParams(**FULL, **lisa)
    first, then = active(params, 2, 0), active(params, 2, 3)
    assert first != then  # the seed is chosen so
    job = train.check_resumes_exactly("job", **lisa)
    began = dict(train.trainers[job.path].model.named_parameters())
    halfway, end = weights(job, 3), weights(job)
    of_then = [name for name in began if f".layers.{next(iter(then))}." in name]
    assert all(not torch.equal(halfway[name], end[name]) for name in of_then)
    of_first = [name for name in began if f".layers.{next(iter(first))}." in name]
    assert all(torch.equal(halfway[name], end[name]) for name in of_first)
    assert not torch.equal(halfway["lm_head.weight"], end["lm_head.weight"])
    assert not torch.equal(halfway["model.embed_tokens.weight"], end["model.embed_tokens.weight"])
    assert len(state(job)["state"]) == len(began) - len(of_first)  # those at rest have none


def test_what_schedule_free_training_saves_and_evaluates_is_the_average(train: Training) -> None:
    """Of SGD without a warm-up, the mean of the weights after each step."""
    job = train(
        "job", optim="schedule_free_sgd", lr_scheduler_type=None, max_steps=2, save_steps=1, eval_steps=1,
        val_dataset=[f"{train.data}#4"], weight_decay=0, learning_rate=0.1,
    )  # fmt: skip
    trainer, saved = train.trainers[job.path], weights(job, 2)
    order = [weight for group in trainer.optimizer.param_groups for weight in group["params"]]
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    for index, weight in enumerate(order):
        mean = (state(job, 1)["state"][index]["z"] + state(job, 2)["state"][index]["z"]) / 2
        assert torch.allclose(saved[names[id(weight)]], mean, atol=1e-6)
    trainer.model.load_state_dict(saved)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluations(job)[2]["loss"], abs=1e-6)


def test_the_names_are_the_librarys_and_muon() -> None:
    assert set(get_args(Optim)) == {name.value for name in OptimizerNames} | {"muon"}


@pytest.mark.parametrize("name", get_args(Optim))
def test_each_name_is_made_by_someone_or_refused_with_what_is_missing(name: Any) -> None:
    params = SftParams(optim=name, max_grad_norm=0, **FULL)
    assert name in optimizer_of(params).names
    told = [reason for param, reason in refusals(params) if param in ("optim", "use_galore")]
    if not isinstance(optimizer_of(params), Named):
        assert bool(told) == ("galore" in name and "8bit" in name)
        return
    try:
        arguments = TrainingArguments(output_dir="none", use_cpu=True, report_to=[], optim=name)
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, tiny_model())
        kind([torch.zeros(2, 2, requires_grad=True)], **settings)
    except (ImportError, ValueError):
        assert len(told) == 1 and "needs the package" in told[0] and name in told[0]
    else:
        assert told == []


def test_no_name_is_made_by_two() -> None:
    names = [name for optimizer in OPTIMIZERS for name in optimizer.names]
    assert len(names) == len(set(names))
    assert set(names) >= BITSANDBYTES


@pytest.mark.parametrize(
    ("given", "param", "reason"),
    [
        ({"use_galore": True}, "use_galore", "only train_type full reads it"),
        ({"optim": "galore_adamw"}, "use_galore", "only train_type full reads it"),
        ({"optim": "muon"}, "optim", "only train_type full reads it"),
        (FULL | {"galore_rank": 4}, "galore_rank", "only use_galore reads it"),
        (FULL | {"lisa_step_interval": 4}, "lisa_step_interval", "only lisa_activated_layers reads it"),
        (GALORE | {"lorap_lr_ratio": 4}, "use_galore", "not together with lorap_lr_ratio"),
        (GALORE | {"lisa_activated_layers": 1}, "lisa_activated_layers", "not together with use_galore"),
        (GALORE | {"optim": "adamw_8bit"}, "optim", "adamw_8bit is not together with use_galore"),
        (GALORE | {"optim": "muon"}, "optim", "muon is not together with use_galore"),
        (GALORE | {"optim": "galore_adamw_8bit"}, "optim", "does not run with today's bitsandbytes"),
        (GALORE | {"galore_queue_size": 2}, "galore_queue_size", "only Q-GaLore reads it"),
        (GALORE | {"galore_quantization": True, "galore_proj_bits": 8}, "galore_proj_bits", "set galore_proj_quant"),
        (GALORE | {"galore_optim_per_parameter": True}, "galore_optim_per_parameter", "set max_grad_norm to 0"),
        (
            GALORE | {"galore_optim_per_parameter": True, "max_grad_norm": 0, "gradient_accumulation_steps": 2},
            "galore_optim_per_parameter",
            "set gradient_accumulation_steps to 1",
        ),
        (GALORE | {"deepspeed": "zero2"}, "deepspeed", "it divides weights, which use_galore looks at as a whole"),
        (FULL | {"optim": "muon", "deepspeed": "zero3"}, "deepspeed", "which optim muon looks at as a whole"),
        ({"optim": "adamw_8bit", "lorap_lr_ratio": 4}, "optim", "adamw_8bit is not together with lorap_lr_ratio"),
        ({"optim": "lomo"}, "optim", "lomo needs the package lomo_optim, which is not installed here"),
        ({"optim_args": {"momentum": 0.9}}, "optim_args", "optim adamw_torch_fused has no setting 'momentum'"),
        ({"optim": "sgd", "optim_args": {"x": 1}}, "optim_args", "what it has is dampening, momentum, nesterov"),
        ({"optim": "sgd", "optim_args": {"momentum": "x"}}, "optim_args", "momentum must be of type float, not 'x'"),
        (FULL | {"optim": "apollo_adamw", "optim_args": {"proj": "no"}}, "optim_args", "choose random or svd"),
        (FULL | {"optim": "apollo_adamw", "optim_args": {"rank": 0}}, "optim_args", "rank must be above 0"),
        (FULL | {"optim": "apollo_adamw", "optim_args": {"rank": "x"}}, "optim_args", "rank must be of type int"),
        (FULL | {"optim": "muon", "optim_args": {"momentum": 1.0}}, "optim_args", "0 or more, and below 1"),
        (
            {"optim": "schedule_free_adamw", "lr_scheduler_type": "cosine"},
            "lr_scheduler_type",
            "schedule_free_adamw does without a schedule",
        ),
        (
            {"optim": "schedule_free_adamw", "lr_scheduler_kwargs": {"num_cycles": 2}},
            "lr_scheduler_kwargs",
            "schedule_free_adamw does without a schedule",
        ),
        ({"optim": "schedule_free_adamw", "train_type": "adalora"}, "optim", "brings back what adalora takes away"),
        ({"optim": "schedule_free_radam", "warmup_ratio": 0.1}, "warmup_ratio", "needs no warm-up"),
        ({"optim": "schedule_free_adamw", "deepspeed": "zero2"}, "deepspeed", "into their average"),
        ({"optim": "adamw_8bit", "fsdp": "full_shard"}, "fsdp", "keeps what belongs to whole weights"),
        (FULL | {"lisa_activated_layers": 1, "optim": "schedule_free_adamw"}, "optim", "not together with lisa"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_go_together_is_refused(given: dict[str, Any], param: str, reason: str) -> None:
    found = dict(refusals(SftParams.model_validate(given)))
    assert reason in found[param]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (GALORE | {"galore_rank": 48}, "galore_rank"),
        (GALORE | {"galore_target_modules": ["q_proj", "nothing"]}, "galore_target_modules"),
        (FULL | {"optim": "apollo_adamw"}, "optim_args"),
    ],
    ids=str,
)
def test_what_fits_no_weight_of_the_model_is_refused(given: dict[str, Any], param: str) -> None:
    params = SftParams.model_validate(given)
    with pytest.raises(InvalidRequest) as caught:
        optimizer_of(params).make(tiny_model(), params, TrainingArguments(output_dir="none", use_cpu=True), steps=1)
    assert caught.value.param == param


def test_galore_projects_the_modules_that_are_named() -> None:
    def projected(**given: Any) -> list[tuple[int, ...]]:
        params = SftParams(**GALORE | given)
        made = optimizer_of(params).make(tiny_model(), params, TrainingArguments(output_dir="none"), steps=1)
        return sorted(tuple(w.shape) for group in made.param_groups if "rank" in group for w in group["params"])

    assert len(projected()) == 2 * 7
    assert projected(galore_target_modules=["q_proj"]) == [(32, 32), (32, 32)]
    assert (300, 32) not in projected()
    assert projected(galore_with_embedding=True).count((300, 32)) == 1
    assert (300, 32) not in projected(galore_target_modules=["all-linear"])


def test_lisa_asks_for_fewer_layers_than_the_model_has() -> None:
    params = SftParams(**FULL, lisa_activated_layers=2)
    with pytest.raises(InvalidRequest, match="the model has 2 layers"):
        Lisa().callbacks(tiny_model(), params)


def test_which_layers_learn_follows_from_the_seed_and_the_step() -> None:
    params = SftParams(**FULL, lisa_activated_layers=2, lisa_step_interval=5)
    drawn = [active(params, 12, step) for step in range(60)]
    assert drawn == [active(params, 12, step) for step in range(60)]
    assert all(len(each) == 2 for each in drawn)
    assert all(len(set(drawn[start : start + 5])) == 1 for start in range(0, 60, 5))
    assert len(set(drawn)) > 8
    other = params.model_copy(update={"seed": 1})
    assert drawn != [active(other, 12, step) for step in range(60)]
