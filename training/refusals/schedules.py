"""What a schedule of the learning rate reads: settings that it does not have are refused by name."""

from collections.abc import Iterator
from typing import Any

from training.params.refusal import Refusal
from training.params.sft import SftParams

FOLLOW_EVALUATION = ("reduce_lr_on_plateau", "greedy")
"""Schedules that go by what an evaluation found."""
NO_WARM_UP = ("constant", *FOLLOW_EVALUATION)
MIN_LR = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
PLATEAU = frozenset({"mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps"})
SETTINGS: dict[str, frozenset[str]] = {
    "linear": frozenset(),
    "cosine": frozenset({"num_cycles"}),
    "cosine_with_restarts": frozenset({"num_cycles"}),
    "polynomial": frozenset({"lr_end", "power"}),
    "constant": frozenset(),
    "constant_with_warmup": frozenset(),
    "inverse_sqrt": frozenset({"timescale"}),
    "reduce_lr_on_plateau": PLATEAU,
    "cosine_with_min_lr": frozenset({"num_cycles", "min_lr", "min_lr_rate"}),
    "cosine_warmup_with_min_lr": frozenset({"num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"}),
    "warmup_stable_decay": frozenset(
        {"num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"}
    ),
    "greedy": PLATEAU | {"warmup", "max_lr", "verbose", "smooth", "window_size", "reset_start"},
}
"""Schedule -> what `lr_scheduler_kwargs` may say of it; a test compares them with the library's."""


def unfit_schedule(params: SftParams) -> Iterator[Refusal]:
    schedule, settings = params.lr_scheduler_type, params.lr_scheduler_kwargs or {}
    yield from _unfit_settings(schedule, settings)
    if schedule in NO_WARM_UP and params.warmup_ratio > 0:
        yield "warmup_ratio", f"the schedule {schedule} has no warm-up: choose another, such as constant_with_warmup"
    if schedule in MIN_LR and len({"min_lr", "min_lr_rate"} & settings.keys()) != 1:
        yield "lr_scheduler_kwargs", f"the schedule {schedule} needs min_lr or min_lr_rate in it"
    if schedule == "warmup_stable_decay" and "num_decay_steps" not in settings:
        yield "lr_scheduler_kwargs", f"the schedule {schedule} needs num_decay_steps in it"


def _unfit_settings(schedule: str, settings: dict[str, Any]) -> Iterator[Refusal]:
    known = SETTINGS[schedule]
    if settings and not known:
        yield "lr_scheduler_kwargs", f"the schedule {schedule} has no settings: leave it out"
        return
    for name in sorted(settings.keys() - known):
        choices = ", ".join(sorted(known))
        yield "lr_scheduler_kwargs", f"the schedule {schedule} has no setting {name!r}; what it has is {choices}"
