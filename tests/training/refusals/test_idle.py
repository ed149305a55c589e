"""A parameter that the others keep from being read is refused by name, with what to do; one that asks for nothing is
not."""

from typing import Any

import pytest

from training.params.task import TASK
from training.refusals.supported import refusals

RESUMED = {"resume_from_checkpoint": "checkpoint-3", "resume_only_model": True}
NO_EVALUATION = {"split_dataset_ratio": 0}


def refused(task: str, params: dict[str, Any]) -> dict[str, str]:
    return dict(refusals(TASK.validate_python({"task": task, "params": params})))


@pytest.mark.parametrize("beside", [{"adapters": ["a"]}, RESUMED], ids=["adapters", "resume_only_model"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_modules", ["q_proj"]),
        ("target_regex", ".*q_proj"),
        ("modules_to_save", ["lm_head"]),
        ("init_weights", "gaussian"),
        ("lora_rank", 4),
        ("lora_alpha", 8),
        ("lora_dropout", 0.0),
        ("lora_bias", "all"),
        ("lora_dtype", "bfloat16"),
        ("use_dora", True),
        ("use_rslora", True),
    ],
)
def test_the_shape_of_an_adapter_that_is_there_already(name: str, value: Any, beside: dict[str, Any]) -> None:
    found = refused("sft", {name: value, **beside})

    assert "which has its own" in found.pop(name)
    assert found == {}
    assert refused("sft", {name: value}) == {}


def test_going_on_from_a_whole_checkpoint_makes_the_adapter_anew() -> None:
    assert refused("sft", {"lora_rank": 4, "resume_from_checkpoint": "checkpoint-3"}) == {}


@pytest.mark.parametrize(
    ("params", "name", "told"),
    [
        ({"val_dataset": ["v"], "split_dataset_ratio": 0.1}, "split_dataset_ratio", "give one of the two"),
        ({"streaming": True, "max_steps": 1, "dataset_num_proc": 2}, "dataset_num_proc", "leave it out"),
        ({"lazy_tokenize": True, "dataset_num_proc": 2}, "dataset_num_proc", "dataloader_num_workers"),
        ({"packing": True, "padding_side": "left"}, "padding_side", "not padded"),
        (
            {"gradient_checkpointing": False, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "gradient_checkpointing_kwargs",
            "turn it on",
        ),
        (NO_EVALUATION | {"eval_strategy": "steps"}, "eval_strategy", "name a val_dataset"),
        (NO_EVALUATION | {"eval_steps": 3}, "eval_steps", "above 0"),
        (NO_EVALUATION | {"metric_for_best_model": "token_accuracy"}, "metric_for_best_model", "name a val_dataset"),
        (NO_EVALUATION | {"greater_is_better": True}, "greater_is_better", "name a val_dataset"),
        (NO_EVALUATION | {"predict_with_generate": True}, "predict_with_generate", "name a val_dataset"),
        (NO_EVALUATION | {"per_device_eval_batch_size": 2}, "per_device_eval_batch_size", "name a val_dataset"),
        ({"streaming": True, "max_steps": 1, "eval_steps": 3}, "eval_steps", "name a val_dataset"),
        ({"val_dataset": ["v"], "eval_strategy": "no", "eval_steps": 3}, "eval_steps", "set eval_strategy"),
        ({"val_dataset": ["v"], "save_strategy": "no", "eval_steps": 3}, "eval_steps", "set eval_strategy"),
        (NO_EVALUATION | {"lr_scheduler_type": "greedy"}, "lr_scheduler_type", "name a val_dataset"),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, "warmup_ratio", "constant_with_warmup"),
        ({"val_dataset": ["v"], "eval_strategy": "epoch", "eval_steps": 3}, "eval_steps", "set eval_strategy to steps"),
        ({"val_dataset": ["v"], "save_strategy": "epoch", "eval_steps": 3}, "eval_steps", "set eval_strategy to steps"),
        ({"save_strategy": "epoch", "save_steps": 3}, "save_steps", "set save_strategy to steps"),
        ({"save_strategy": "no", "save_steps": 3}, "save_steps", "set save_strategy to steps"),
        (
            {"save_strategy": "no", "save_steps": 3, "val_dataset": ["v"], "eval_strategy": "steps", "eval_steps": 2},
            "save_steps",
            "set save_strategy to steps",
        ),
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"power": 2}}, "lr_scheduler_kwargs", "no settings"),
        ({"lr_scheduler_kwargs": {"power": 2}}, "lr_scheduler_kwargs", "what it has is num_cycles"),
        (
            {"val_dataset": ["v"], "lr_scheduler_type": "reduce_lr_on_plateau", "warmup_ratio": 0.1},
            "warmup_ratio",
            "has no warm-up",
        ),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 2}},
            "lr_scheduler_kwargs",
            "has no settings",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs", "needs min_lr or min_lr_rate"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_kwargs", "needs num_decay_steps"),
        ({"metric_for_best_model": "rouge-l"}, "metric_for_best_model", "choose loss, token_accuracy"),
        ({"metric_for_best_model": "token_accuracy", "acc_strategy": "seq"},
         "metric_for_best_model", "choose loss, seq"),
    ],
    ids=str,
)  # fmt: skip
def test_what_others_keep_from_being_read(params: dict[str, Any], name: str, told: str) -> None:
    found = refused("sft", params)

    assert told in found.pop(name)
    assert found == {}


@pytest.mark.parametrize(
    "params",
    [
        {"adapters": ["a"], "lora_rank": 8},
        {"val_dataset": ["v"], "split_dataset_ratio": 0},
        {"streaming": True, "max_steps": 1, "dataset_num_proc": 1},
        NO_EVALUATION | {"eval_strategy": "no"},
        {"eval_steps": 3, "metric_for_best_model": "eval_token_accuracy"},
        {"val_dataset": ["v"], "save_strategy": "epoch", "eval_strategy": "steps", "save_steps": 3},
        {"val_dataset": ["v"], "predict_with_generate": True, "metric_for_best_model": "bleu-4"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
    ],
    ids=str,
)
def test_what_asks_for_nothing_or_is_read_is_taken(params: dict[str, Any]) -> None:
    assert refused("sft", params) == {}


def test_dpo_tells_the_best_checkpoint_by_its_own_metrics() -> None:
    dpo = {"rlhf_type": "dpo", "model": "m"}

    assert refused("rlhf", dpo | {"metric_for_best_model": "eval_rewards/margins"}) == {}
    assert "rewards/margins" in refused("rlhf", dpo | {"metric_for_best_model": "rouge-l"})["metric_for_best_model"]


@pytest.mark.parametrize(
    ("task", "params", "name"),
    [
        ("sft", {"tuner_backend": "unsloth"}, "tuner_backend"),
        ("sft", {"init_weights": "bat"}, "init_weights"),
        ("sft", {"freeze_llm": True}, "freeze_llm"),
        ("sft", {"lora_ga_iters": 4}, "lora_ga_iters"),
        ("sft", {"train_type": "full", "lora_rank": 4}, "lora_rank"),
        ("sft", {"freeze_parameters": ["a"]}, "freeze_parameters"),
        ("sft", {"streaming": True}, "max_steps"),
        ("sft", {"temperature": 0.5}, "temperature"),
        ("sft", {"loss_scale": "no/such/file.json"}, "loss_scale"),
        (
            "sft",
            {"predict_with_generate": True, "val_dataset": ["v"], "loss_scale": "all"},
            "predict_with_generate",
        ),
        ("merge", {"adapters": ["a"], "train_type": "full"}, "train_type"),
        ("merge", {}, "adapters"),
        ("merge", {"adapters": ["a"], "safe_serialization": False}, "safe_serialization"),
        ("pt", {"predict_with_generate": True, "max_new_tokens": 3}, "max_new_tokens"),
        ("pt", {"loss_scale": "last_round"}, "loss_scale"),
        ("rlhf", {"rlhf_type": "dpo", "average_tokens_across_devices": True}, "average_tokens_across_devices"),
        ("sft", {"template_backend": "swift"}, "template_backend"),
        ("sft", {"gradient_checkpointing_kwargs": {"reentrant": False}}, "gradient_checkpointing_kwargs"),
        ("sft", {"target_modules": ["all-linear", "q_proj"]}, "target_modules"),
        ("sft", {"train_type": "boft", "target_modules": ["all-linear", "q_proj"]}, "target_modules"),
    ],
)
def test_what_a_task_does_not_read(task: str, params: dict[str, Any], name: str) -> None:
    assert name in refused(task, params)


def test_a_parameter_at_its_default_asks_for_nothing() -> None:
    assert refused("sft", {"use_galore": False, "lora_rank": 16}) == {}
