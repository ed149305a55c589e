"""Which parameters of a task the pipelines read. One that none of them reads is refused, never ignored."""

from collections.abc import Mapping
from typing import Any

from engines.params.base import Params
from training.params.export import MergeParams
from training.params.rlhf import RlhfParams
from training.params.sft import PtParams, SftParams
from training.params.task import Task

DATA = frozenset(
    {
        "dataset", "val_dataset", "split_dataset_ratio", "data_seed", "dataset_num_proc", "streaming", "enable_cache",
        "download_mode", "strict", "model_name", "model_author", "custom_dataset_info", "custom_register_path",
        "system", "max_length", "truncation_strategy", "loss_scale", "use_chat_template", "packing", "lazy_tokenize",
        "padding_side",
    }
)  # fmt: skip
MODEL = frozenset({"model", "model_revision", "hub_token", "torch_dtype", "attn_impl"})
TUNER = frozenset(
    {
        "train_type", "adapters", "target_modules", "target_regex", "modules_to_save", "init_weights", "lora_rank",
        "lora_alpha", "lora_dropout", "lora_bias", "lora_dtype", "use_dora", "use_rslora", "lorap_lr_ratio",
        "freeze_parameters", "freeze_parameters_ratio", "trainable_parameters",
    }
)  # fmt: skip
TRAINER = frozenset(
    {
        "seed", "output_dir", "add_version", "load_args", "load_data_args", "gradient_checkpointing",
        "gradient_checkpointing_kwargs", "per_device_train_batch_size", "per_device_eval_batch_size", "weight_decay",
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "report_to", "logging_first_step",
        "logging_steps", "metric_for_best_model", "greater_is_better", "num_train_epochs",
        "gradient_accumulation_steps", "save_strategy", "save_steps", "eval_strategy", "eval_steps",
        "save_total_limit", "max_steps", "warmup_ratio", "save_on_each_node", "save_only_model",
        "resume_from_checkpoint", "resume_only_model", "ddp_backend", "ddp_find_unused_parameters",
        "dataloader_num_workers", "neftune_noise_alpha", "average_tokens_across_devices", "max_grad_norm",
        "acc_strategy", "predict_with_generate", "max_new_tokens", "temperature",
    }
)  # fmt: skip
ONLY_SFT = frozenset(
    {
        "packing",
        "lazy_tokenize",
        "padding_side",
        "acc_strategy",
        "loss_scale",
        "predict_with_generate",
        "max_new_tokens",
        "temperature",
    }
)
PREFERENCES = frozenset({"rlhf_type", "ref_model", "ref_model_revision", "beta", "label_smoothing", "rpo_alpha"})

HONOURED: dict[type[Params], frozenset[str]] = {
    SftParams: DATA | MODEL | TUNER | TRAINER,
    PtParams: DATA | MODEL | TUNER | TRAINER,
    RlhfParams: (DATA | MODEL | TUNER | TRAINER | PREFERENCES) - ONLY_SFT,
    MergeParams: frozenset(
        {
            "model", "model_revision", "hub_token", "torch_dtype", "adapters", "merge_lora", "safe_serialization",
            "max_shard_size", "output_dir",
        }
    ),
}  # fmt: skip
"""A test holds these sets to the code of `training`: what is here is read there, and the other way round."""

BUILT_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "train_type": ("lora", "full"),
    "init_weights": ("true", "false", "gaussian"),
    "loss_scale": ("default", "last_round", "all"),
    "rlhf_type": ("dpo",),
    "template_backend": ("jinja", "swift"),
    "safe_serialization": (True,),
}
"""What is built, of parameters that have more choices."""
EITHER_WAY = frozenset({"template_backend"})
"""All templates are the models' own, which is what both choices come to."""

ONLY_FOR: Mapping[str, frozenset[str]] = {
    "full": frozenset({"freeze_parameters", "freeze_parameters_ratio", "trainable_parameters"}),
    "lora": frozenset(
        {
            "target_modules", "target_regex", "modules_to_save", "init_weights", "lora_rank", "lora_alpha",
            "lora_dropout", "lora_bias", "lora_dtype", "use_dora", "use_rslora", "lorap_lr_ratio",
        }
    ),
}  # fmt: skip
"""Parameters that one train_type alone reads."""


def unread(params: type[Params]) -> frozenset[str]:
    """The parameters of a task that are refused in any value but their default."""
    return frozenset(params.model_fields) - HONOURED[params] - EITHER_WAY


def refusals(task: Task) -> list[tuple[str, str]]:
    """Each parameter that was given in vain, and why."""
    params = task.params
    found = [(name, reason) for name in sorted(params.model_fields_set) if (reason := _refusal(params, name))]
    if isinstance(params, MergeParams):
        return found + ([] if params.adapters else [("adapters", "name the adapter to merge")])
    return found + _unfit(params) + (_unfit_for_dpo(params) if isinstance(params, RlhfParams) else [])


def _refusal(params: Params, name: str) -> str | None:
    value = getattr(params, name)
    if name == "init_weights" and str(value).startswith("pissa") and not isinstance(params, RlhfParams):
        return None
    if name in BUILT_CHOICES and value not in BUILT_CHOICES[name]:
        return f"{_word(value)} is not built yet; choose {' or '.join(map(_word, BUILT_CHOICES[name]))}"
    default = type(params).model_fields[name].get_default(call_default_factory=True)
    if name in unread(type(params)) and value != default:
        return "nothing in this version depends on it"
    return None


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unfit(params: SftParams) -> list[tuple[str, str]]:
    """Parameters that do not go together."""
    given = params.model_fields_set
    found = [
        (name, f"only train_type {kind} reads it")
        for kind, names in ONLY_FOR.items()
        if params.train_type != kind
        for name in sorted(names & given)
        if getattr(params, name) != type(params).model_fields[name].get_default()
    ]
    if params.train_type == "full" and params.adapters:
        found.append(("adapters", "only train_type lora goes on with an adapter; merge it first"))
    if params.adapters and params.resume_from_checkpoint:
        found.append(("adapters", "resume_from_checkpoint names what training goes on with"))
    if params.resume_only_model and not params.resume_from_checkpoint:
        found.append(("resume_only_model", "give the checkpoint as resume_from_checkpoint"))
    if params.streaming and params.max_steps < 1:
        found.append(("max_steps", "streamed data has no known length: say how many steps to train"))
    if params.target_regex is not None and "target_modules" in given:
        found.append(("target_modules", "target_regex goes before it: give one of the two"))
    for name in sorted({"max_new_tokens", "temperature"} & given):
        if isinstance(params, SftParams) and not isinstance(params, RlhfParams) and not params.predict_with_generate:
            found.append((name, "predict_with_generate is what writes text here: set it to true"))
    if params.init_weights.startswith("pissa"):
        for name in ("use_dora", "use_rslora"):
            if getattr(params, name):
                found.append((name, "not together with init_weights pissa"))
        if params.lora_bias != "none":
            found.append(("lora_bias", "not together with init_weights pissa"))
    if params.packing and params.lazy_tokenize:
        found.append(("lazy_tokenize", "packing needs the lengths of all samples before training"))
    return found


def _unfit_for_dpo(params: RlhfParams) -> list[tuple[str, str]]:
    found = []
    if params.lora_dropout and "lora_dropout" in params.model_fields_set:
        found.append(("lora_dropout", "dpo compares with a reference, and trains without dropout: leave it out"))
    if params.lora_bias != "none":
        found.append(("lora_bias", "the reference shares the model's biases, which must then stay as they are"))
    if params.label_smoothing == 0.5:
        found.append(("label_smoothing", "at 0.5 no preference means anything: choose less"))
    if params.ref_model_revision is not None and params.ref_model is None:
        found.append(("ref_model_revision", "it belongs to ref_model, which is not given"))
    return found
