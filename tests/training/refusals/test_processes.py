"""What does not go together with a training that processes divide: refused before anything is loaded."""

from typing import Any

import pytest

from training.params.task import TASK
from training.refusals import processes
from training.refusals.supported import refusals

LAYERS: dict[str, Any] = {"tensor_model_parallel_size": 2}
ZERO3 = {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}}


def refused(given: dict[str, Any], task: str = "sft") -> dict[str, str]:
    return dict(refusals(TASK.validate_python({"task": task, "params": {"model": "m", **given}})))


@pytest.mark.parametrize("how", ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", ZERO3])
@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_deepspeed_trains_by(how: Any, train_type: str) -> None:
    assert refused({"deepspeed": how, "train_type": train_type}) == {}


@pytest.mark.parametrize("given", [{}, {"train_type": "full"}, {"optim": "sgd"}, {"lorap_lr_ratio": 16}], ids=str)
def test_layers_are_divided_with(given: dict[str, Any]) -> None:
    assert refused(LAYERS | given) == {}
    assert refused(LAYERS | given | {"dry_run": True}) == {}


@pytest.mark.parametrize(
    ("given", "name", "words"),
    [
        ({"deepspeed": "zero2", "fsdp": "full_shard"}, "fsdp", "not together with deepspeed"),
        ({"deepspeed": "zero1", "train_type": "adalora"}, "train_type", "with deepspeed, choose lora or full"),
        ({"fsdp": "full_shard", "train_type": "vera"}, "train_type", "with fsdp, choose lora or full"),
        ({"fsdp": "full_shard", "use_dora": True}, "use_dora", "needs whole weights, which fsdp divides"),
        ({"deepspeed": "zero3", "init_weights": "pissa"}, "init_weights", "needs whole weights"),
        ({"deepspeed": "zero3", "predict_with_generate": True}, "predict_with_generate", "needs whole weights"),
        ({"deepspeed": "zero3", "quant_method": "bnb"}, "quant_method", "quantised weights are not divided"),
        ({"deepspeed": "zero2", "dry_run": True}, "dry_run", "what deepspeed leaves to each process is not estimated"),
        ({"deepspeed": "zero2", "optim": "adafactor"}, "optim", "choose adamw_torch, adamw_torch_fused, sgd"),
        ({"deepspeed": "zero3", "optim": "adagrad"}, "optim", "choose adamw_torch, adamw_torch_fused, sgd, rmsprop"),
        ({"fsdp": "full_shard", "optim": "schedule_free_adamw"}, "optim", "choose adamw_torch"),
        ({"fsdp": "full_shard", "train_type": "full", "use_galore": True}, "use_galore", "looks at whole weights"),
        ({"deepspeed": "zero2", "task_type": "seq_cls"}, "deepspeed", "seq_cls does not train with weights"),
        ({"sequence_parallel_size": 2, "task_type": "seq_cls"}, "sequence_parallel_size", "sft and pt do"),
        ({"sequence_parallel_size": 2, "streaming": True}, "sequence_parallel_size", "leave streaming out"),
        ({"sequence_parallel_size": 2, "attn_impl": "eager"}, "attn_impl", "leave it out"),
        ({"sequence_parallel_size": 2, "padding_side": "left"}, "padding_side", "padded on the right"),
        ({"sequence_parallel_size": 2, "acc_strategy": "seq"}, "acc_strategy", "choose token"),
        (LAYERS | {"fsdp": "full_shard"}, "fsdp", "not together with tensor_model_parallel_size"),
        (
            LAYERS | {"sequence_parallel_size": 2},
            "sequence_parallel_size",
            "not together with tensor_model_parallel_size",
        ),
        (LAYERS | {"train_type": "vera"}, "train_type", "with tensor_model_parallel_size, choose lora or full"),
        (LAYERS | {"use_dora": True}, "use_dora", "needs whole weights, which tensor_model_parallel_size divides"),
        (LAYERS | {"train_type": "full", "use_galore": True}, "use_galore", "looks at whole weights"),
        (
            LAYERS | {"task_type": "seq_cls"},
            "tensor_model_parallel_size",
            "seq_cls does not divide layers; sft and pt do",
        ),
        (LAYERS | {"streaming": True}, "tensor_model_parallel_size", "leave streaming out"),
        (LAYERS | {"use_liger": True}, "use_liger", "kernels compute whole layers"),
        ({"sequence_parallel_size": 2, "router_aux_loss_coef": 0.1}, "router_aux_loss_coef", "set it to 0"),
    ],
)
def test_what_does_not_go_together(given: dict[str, Any], name: str, words: str) -> None:
    assert words in refused(given)[name]


@pytest.mark.parametrize("how", [{"deepspeed": "zero1"}, {"deepspeed": "zero3"}, {"fsdp": "full_shard"}, LAYERS])
@pytest.mark.parametrize(
    "given",
    [
        {"rlhf_type": "grpo", "reward_funcs": ["format"]},
        {"rlhf_type": "kto"},
        {"rlhf_type": "dpo", "train_type": "full"},
        {"rlhf_type": "dpo", "adapters": ["trained"]},
    ],
    ids=str,
)
def test_whole_weights_are_needed_by(how: dict[str, str], given: dict[str, Any]) -> None:
    assert next(iter(how)) in refused(how | given, "rlhf")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "zero_optimization needs a stage"),
        ({"zero_optimization": {"stage": 4}}, "needs a stage, 0, 1, 2 or 3"),
        ({"zero_optimization": "x"}, "needs a stage"),
        ({"zero_optimization": {"stage": 3}}, "stage3_gather_16bit_weights_on_model_save true"),
        ({**ZERO3, "optimizer": {"type": "Adam"}}, "optimizer: our own parameters say that"),
        ({**ZERO3, "train_batch_size": 8}, "train_batch_size: our own parameters say that"),
        ({**ZERO3, "tensorboard": {"output_path": "/etc"}}, "tensorboard: it is not supported"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/etc"}}},
            "offload_optimizer: choose the device cpu or none",
        ),
    ],
    ids=str,
)
def test_a_configuration_says_nothing_that_is_not_read(config: dict[str, Any], words: str) -> None:
    assert words in refused({"deepspeed": config})["deepspeed"]


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    assert refused({"deepspeed": "zero2"})["deepspeed"].endswith("pip install 'tuneserve[deepspeed]'")
