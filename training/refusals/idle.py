"""Parameters that a task reads, but not beside the others that were given: refused by name, never ignored."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from training.methods import METHODS
from training.params.evaluation import given_for_evaluation
from training.params.refusal import Refusal, given
from training.params.sft import SftParams
from training.refusals.schedules import FOLLOW_EVALUATION, unfit_schedule
from training.tuners import TUNERS


@dataclass(frozen=True, slots=True)
class _Rule:
    """While `holds`, nothing reads `names`, and `reason` says why and what to do."""

    names: tuple[str, ...]
    holds: Callable[[SftParams], bool]
    reason: str


def idle(params: SftParams) -> list[Refusal]:
    """Each parameter that was given a value of its own although the others keep it from being read, and why."""
    found = [(name, rule.reason) for rule in RULES for name in given(params, rule.names) if rule.holds(params)]
    return [
        *found,
        *_beside_an_adapter(params),
        *_without_evaluation(params),
        *unfit_schedule(params),
        *_unknown_metric(params),
    ]


RULES = (
    _Rule(
        ("hub_model_id", "hub_private_repo"),
        lambda params: not params.push_to_hub,
        "nothing is uploaded: set push_to_hub",
    ),
    _Rule(
        ("split_dataset_ratio",),
        lambda params: bool(params.val_dataset) and params.split_dataset_ratio > 0,
        "val_dataset is what is evaluated, and nothing is set aside beside it: give one of the two",
    ),
    _Rule(
        ("dataset_num_proc",),
        lambda params: params.streaming,
        "streamed data is prepared while it is read, by the training process: leave it out",
    ),
    _Rule(
        ("dataset_num_proc",),
        lambda params: bool(params.lazy_tokenize),
        "with lazy_tokenize, samples are prepared when they are needed: leave it out, or set dataloader_num_workers",
    ),
    _Rule(
        ("stopping_strategy",),
        lambda params: params.interleave_prob is None,
        "nothing is drawn from several data sets: give interleave_prob",
    ),
    _Rule(("padding_side",), lambda params: params.packing, "packed samples are not padded: leave it out"),
    _Rule(
        ("gradient_checkpointing_kwargs",),
        lambda params: not params.gradient_checkpointing,
        "gradient_checkpointing is off: turn it on, or leave this out",
    ),
    _Rule(
        ("save_steps",),
        lambda params: params.save_strategy != "steps" and not _evaluated_every_save_steps(params),
        "no checkpoint is written by steps: set save_strategy to steps, or leave this out",
    ),
    _Rule(
        ("eval_steps",),
        lambda params: (params.eval_strategy or params.save_strategy) == "epoch",
        "evaluations come after each epoch: set eval_strategy to steps, or leave this out",
    ),
)


def _evaluated_every_save_steps(params: SftParams) -> bool:
    return params.eval_strategy == "steps" and params.eval_steps is None


def _beside_an_adapter(params: SftParams) -> Iterator[Refusal]:
    """What a tuner reads is the shape of an adapter that it makes: one that exists has a shape of its own."""
    tuner = TUNERS.get(params.train_type)
    there = "adapters" if params.adapters else "resume_from_checkpoint" if params.resume_only_model else None
    if there is None or tuner is None or tuner.makes != "adapter":
        return
    for name in sorted(given(params, tuner.reads)):
        yield name, f"training goes on with the adapter in {there}, which has its own: leave it out"


def _without_evaluation(params: SftParams) -> Iterator[Refusal]:
    if (reason := _no_evaluation(params)) is None:
        return
    for name in given_for_evaluation(params):
        yield name, reason
    if params.lr_scheduler_type in FOLLOW_EVALUATION:
        yield "lr_scheduler_type", f"{params.lr_scheduler_type} follows the evaluations, and {reason}"


def _no_evaluation(params: SftParams) -> str | None:
    """Why nothing will be evaluated, as far as the parameters tell."""
    if not params.val_dataset and params.streaming:
        return "there is no validation data: name a val_dataset"
    if not params.val_dataset and params.split_dataset_ratio == 0:
        return "there is no validation data: name a val_dataset, or set split_dataset_ratio above 0"
    if (params.eval_strategy or params.save_strategy) == "no":
        return "nothing is evaluated: set eval_strategy to steps or epoch"
    return None


def _unknown_metric(params: SftParams) -> Iterator[Refusal]:
    metric, method = params.metric_for_best_model, METHODS.get(params.method)
    if metric is None or method is None:
        return
    choices = ("loss", *method.metrics(params))
    if metric.removeprefix("eval_") not in choices:
        yield "metric_for_best_model", f"an evaluation here does not report {metric!r}; choose {', '.join(choices)}"
