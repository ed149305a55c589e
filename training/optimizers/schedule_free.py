"""Schedule-free optimizers (Defazio et al. 2024, arXiv:2405.15682): an average of the weights in place of a learning
rate that falls. What is evaluated and saved is the average; gradients are taken beside it."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from training.optimizers.base import Optimizer, decayed
from training.optimizers.named import missing
from training.params.refusal import Refusal, given
from training.params.sft import SftParams

DRAWING = ("grpo", "rloo", "ppo", "gkd")
"""Methods whose steps learn from answers that the model gives."""


class ScheduleFree(Optimizer):
    parameter = "optim"
    names = frozenset({"schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"})
    beside = frozenset()
    reads = frozenset({"optim", "optim_args"})

    def settings(self, params: SftParams) -> Mapping[str, type]:
        return {"r": float, "weight_lr_power": float}

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = missing("schedulefree", "optim", params.optim)
        if "lr_scheduler_type" in params.model_fields_set and params.lr_scheduler_type != "constant":
            found.append(("lr_scheduler_type", f"{params.optim} does without a schedule: leave it out"))
        if params.lr_scheduler_kwargs:
            found.append(("lr_scheduler_kwargs", f"{params.optim} does without a schedule: leave it out"))
        if params.train_type == "adalora":
            reason = f"the average of {params.optim} brings back what adalora takes away: choose adamw_torch"
            found.append(("optim", reason))
        if params.warmup_ratio > 0 and params.optim == "schedule_free_radam":
            found.append(("warmup_ratio", "RAdam needs no warm-up: leave it out"))
        for name in given(params, ("deepspeed", "fsdp")):
            found.append((name, f"it does not turn the weights of {params.optim} into their average: leave it out"))
        if params.method in DRAWING:
            found.append(("optim", f"{params.method} would draw answers by other weights than those that are trained"))
        return found

    def arguments(self, params: SftParams) -> dict[str, Any]:
        return {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": None, "warmup_steps": 0}

    def make(self, model: Any, params: SftParams, arguments: Any, *, steps: int) -> Any:
        import schedulefree

        kinds = {
            "schedule_free_adamw": schedulefree.AdamWScheduleFree,
            "schedule_free_radam": schedulefree.RAdamScheduleFree,
            "schedule_free_sgd": schedulefree.SGDScheduleFree,
        }
        settings: dict[str, Any] = {"lr": arguments.learning_rate, **(params.optim_args or {})}
        if params.optim != "schedule_free_sgd":
            betas = (arguments.adam_beta1, arguments.adam_beta2)
            settings |= {"betas": betas, "eps": arguments.adam_epsilon}
        if params.optim != "schedule_free_radam":
            settings["warmup_steps"] = round(params.warmup_ratio * steps)
        return kinds[params.optim](decayed(model, arguments.weight_decay), **settings)

    def state_bytes(self, params: SftParams, shape: Sequence[int]) -> int:
        return (4 if params.optim == "schedule_free_sgd" else 8) * prod(shape)
