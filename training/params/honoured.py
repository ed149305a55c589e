"""Which parameters of a task the pipelines read. One that none of them reads is refused, never ignored."""

from collections.abc import Mapping
from typing import Any

from engines.params.base import Params
from training import methods, optimizers, tuners
from training.methods import methods_of
from training.optimizers import OPTIMIZERS
from training.params.export import MergeParams
from training.params.idle import idle
from training.params.rlhf import RlhfParams
from training.params.sft import PtParams, SftParams
from training.params.task import Task
from training.refusal import Refusal
from training.tuners import TUNERS

DATA = frozenset(
    {
        "dataset", "val_dataset", "split_dataset_ratio", "data_seed", "dataset_num_proc", "streaming", "enable_cache",
        "download_mode", "strict", "model_name", "model_author", "custom_dataset_info", "custom_register_path",
        "system", "max_length", "truncation_strategy", "use_chat_template",
    }
)  # fmt: skip
MODEL = frozenset({"model", "model_revision", "hub_token", "torch_dtype", "attn_impl"})
TRAINER = frozenset(
    {
        "seed", "output_dir", "add_version", "load_args", "load_data_args", "gradient_checkpointing",
        "gradient_checkpointing_kwargs", "per_device_train_batch_size", "per_device_eval_batch_size", "weight_decay",
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "report_to", "logging_first_step",
        "logging_steps", "metric_for_best_model", "greater_is_better", "num_train_epochs",
        "gradient_accumulation_steps", "save_strategy", "save_steps", "eval_strategy", "eval_steps",
        "save_total_limit", "max_steps", "warmup_ratio", "save_only_model",
        "resume_from_checkpoint", "resume_only_model", "ddp_backend", "ddp_find_unused_parameters",
        "dataloader_num_workers", "neftune_noise_alpha", "max_grad_norm",
    }
)  # fmt: skip
TUNER = frozenset({"train_type", "adapters"}).union(
    *(tuner.reads for tuner in TUNERS.values()), *(optimizer.reads for optimizer in OPTIMIZERS)
)


def _of_training(task: str) -> frozenset[str]:
    return (DATA | MODEL | TUNER | TRAINER).union(*(method.reads for method in methods_of(task).values()))


HONOURED: dict[type[Params], frozenset[str]] = {
    SftParams: _of_training("sft"),
    PtParams: _of_training("pt"),
    RlhfParams: _of_training("rlhf"),
    MergeParams: frozenset(
        {
            "model", "model_revision", "hub_token", "torch_dtype", "adapters", "merge_lora", "safe_serialization",
            "max_shard_size", "output_dir",
        }
    ),
}  # fmt: skip
"""A test holds these sets to the code of `training`: what is here is read there, and the other way round."""

BUILT_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "loss_scale": ("default", "last_round", "all"),
    "template_backend": ("jinja",),
    "safe_serialization": (True,),
}
"""What is built, of parameters that have more choices."""


def unread(params: type[Params]) -> frozenset[str]:
    """The parameters of a task that are refused in any value but their default."""
    return frozenset(params.model_fields) - HONOURED[params]


def refusals(task: Task) -> list[Refusal]:
    """Each parameter that was given in vain, and why."""
    params = task.params
    found = [(name, reason) for name in sorted(params.model_fields_set) if (reason := _refusal(params, name))]
    if isinstance(params, MergeParams):
        return found + ([] if params.adapters else [("adapters", "name the adapter to merge")])
    found += tuners.refusals(params) + optimizers.refusals(params) + methods.refusals(params) + _unfit(params)
    return found + idle(params)


def _refusal(params: Params, name: str) -> str | None:
    value = getattr(params, name)
    if name in BUILT_CHOICES and value not in BUILT_CHOICES[name]:
        return f"{_word(value)} is not built yet; choose {' or '.join(map(_word, BUILT_CHOICES[name]))}"
    default = type(params).model_fields[name].get_default(call_default_factory=True)
    if name in unread(type(params)) and value != default:
        return "nothing in this version depends on it"
    return None


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unfit(params: SftParams) -> list[Refusal]:
    """Parameters that do not go together, whatever is trained and how."""
    found = []
    if params.adapters and params.resume_from_checkpoint:
        found.append(("adapters", "resume_from_checkpoint names what training goes on with"))
    if params.resume_only_model and not params.resume_from_checkpoint:
        found.append(("resume_only_model", "give the checkpoint as resume_from_checkpoint"))
    if params.streaming and params.max_steps < 1:
        found.append(("max_steps", "streamed data has no known length: say how many steps to train"))
    return found
