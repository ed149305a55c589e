"""Our parameters in the words of transformers' TrainingArguments."""

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from engines.params.about import facts
from training.optimizers import optimizer_of
from training.params.sft import SftParams
from training.processes import Processes
from training.sharding.zero import configuration
from training.trainers.job.reporters import run_name
from training.trainers.weights.precision import Precision, precision_arguments
from training.tuners import tuner_of

ERRORS = ("mse", "mae")
"""Metrics of which less is better."""


def trainer_arguments(params: SftParams, folder: Path, *, precision: Precision, evaluates: bool) -> dict[str, Any]:
    """`evaluates`: there is validation data."""
    several = Processes.of_environment().count > 1
    return {
        **{name: getattr(params, name) for name, said in facts(type(params)) if said.trainer},
        "output_dir": str(folder),
        "learning_rate": params.learning_rate or tuner_of(params).learning_rate,
        "warmup_steps": min(params.warmup_ratio, 0.999999),  # below 1 it is a part of all steps
        "gradient_checkpointing_kwargs": params.gradient_checkpointing_kwargs or {"use_reentrant": False},
        "neftune_noise_alpha": params.neftune_noise_alpha or None,
        "report_to": list(params.report_to),
        "run_name": run_name(folder),
        "ddp_backend": params.ddp_backend if several else None,  # for one process it would wait for others
        "eval_strategy": (params.eval_strategy or params.save_strategy) if evaluates else "no",
        "eval_steps": params.eval_steps or params.save_steps,
        "metric_for_best_model": best_metric(params) if evaluates else None,
        "greater_is_better": _greater_is_better(params),
        "deepspeed": params.deepspeed and configuration(params.deepspeed),
        "prediction_loss_only": True,
        "include_num_input_tokens_seen": "non_padding",
        "logging_nan_inf_filter": False,  # a loss that is no number must be seen
        "remove_unused_columns": False,
        "disable_tqdm": True,  # whoever watches reads our events
        **precision_arguments(precision),
        **optimizer_of(params).arguments(params),
    }


def on_one_device(arguments: TrainingArguments) -> None:
    """Have the trainer of a process use one GPU: it would split each batch among all that it sees."""
    arguments._n_gpu = min(arguments.n_gpu, 1)


def best_metric(params: SftParams) -> str:
    return params.metric_for_best_model or ("rouge-l" if params.predict_with_generate else "loss")


def _greater_is_better(params: SftParams) -> bool | None:
    """None: transformers takes all for better that is greater, but for losses."""
    error = best_metric(params).removeprefix("eval_") in ERRORS
    return False if error and params.greater_is_better is None else params.greater_is_better
