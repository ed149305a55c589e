"""Two processes learn what one learns from batches of twice the size, and from a stream what they learn without; data
that cannot be used ends both.

They are started once, and train one thing after another.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.jobs import (
    evaluations,
    make_data,
    make_job,
    make_model,
    steps,
    train_together,
    trained,
    weights,
)
from training.folder import JobFolder, Message

COMMON: dict[str, Any] = {
    "torch_dtype": "float32", "max_steps": 4, "save_steps": 4, "logging_steps": 1, "learning_rate": 0.1,
    "per_device_train_batch_size": 1, "report_to": "none", "split_dataset_ratio": 0.0, "optim": "sgd",
}  # fmt: skip
"""SGD, whose steps are as long as the gradient: Adam's are as long for twice of it, and for rounding alone."""
LORA = {"lora_dropout": 0.0}
ALL_TOKENS = {"average_tokens_across_devices": True}
SMALL: dict[str, Any] = LORA | ALL_TOKENS | {"lora_rank": 4}
NF4: dict[str, Any] = {"quant_method": "bnb", "quant_bits": 4}


DRAWN: dict[str, Any] = LORA | {
    "num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 8, "reward_funcs": ["$reward"],
}  # fmt: skip


@dataclass(frozen=True)
class Learned:
    task: str
    rows: str
    params: dict[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ("loss",)
    """What is the same in each step."""
    close: float = 1e-5
    """How near the weights are."""


LEARNED = {
    "sft": Learned("sft", "chats", LORA | ALL_TOKENS),
    # All rows in each step: each process draws its own order.
    "sft, streamed": Learned(
        "sft", "chats", LORA | ALL_TOKENS | {"streaming": True, "per_device_train_batch_size": 4}
    ),
    "pt": Learned("pt", "texts", LORA | ALL_TOKENS),
    "dpo": Learned("rlhf", "pairs", LORA | {"rlhf_type": "dpo", "rpo_alpha": 1.0}),
    "dpo, of sorted answers, computed before": Learned(
        "rlhf", "pairs", LORA | {
            "rlhf_type": "dpo", "loss_type": "aot_unpaired", "per_device_train_batch_size": 2,
            "precompute_ref_log_probs": True,
        }
    ),
    "kto": Learned("rlhf", "labelled", LORA | {"rlhf_type": "kto", "per_device_train_batch_size": 2}),
    "grpo": Learned("rlhf", "prompts", DRAWN | {"rlhf_type": "grpo", "beta": 0.1}, told=("loss", "reward", "kl")),
    "rloo": Learned(
        "rlhf", "prompts", DRAWN | {"rlhf_type": "rloo", "gradient_accumulation_steps": 2},
        told=("loss", "reward", "kl"),
    ),
    "gkd": Learned(
        "rlhf", "chats", LORA | {
            "rlhf_type": "gkd", "teacher_model": "$teacher", "response_length": 8, "gradient_accumulation_steps": 2,
            "learning_rate": 1,
        },
        told=("loss", "on_policy"),
    ),
    "ppo": Learned(
        "rlhf", "prompts", LORA | {
            "rlhf_type": "ppo", "per_device_train_batch_size": 4, "response_length": 8, "reward_funcs": ["$reward"],
            "num_ppo_epochs": 2, "learning_rate": 0.01,
        },
        told=("loss", "loss/policy_avg", "loss/value_avg", "objective/scores", "objective/kl"),
    ),
    "rm": Learned(
        "rlhf", "pairs", {"rlhf_type": "rm", "train_type": "full", "per_device_train_batch_size": 2},
        told=("loss", "margin", "min_reward", "max_reward"),
    ),
    "qlora": Learned("sft", "chats", SMALL | NF4),
    "qlora with 8 bits, zero1": Learned("sft", "chats", SMALL | NF4 | {"quant_bits": 8, "deepspeed": "zero1"}),
    "qlora by torchao": Learned("sft", "chats", SMALL | {"quant_method": "torchao", "quant_bits": 8}),
    "loftq, zero2": Learned("sft", "chats", SMALL | NF4 | {"init_weights": "loftq", "deepspeed": "zero2"}),
    "eva, streamed": Learned(
        "sft", "chats", SMALL | {"init_weights": "eva", "streaming": True, "per_device_train_batch_size": 4}
    ),
    "corda, zero2": Learned("sft", "chats", SMALL | {"init_weights": "corda", "deepspeed": "zero2"}),
    "lora-ga": Learned("sft", "chats", SMALL | {"init_weights": "lora-ga"}),
}  # fmt: skip
STREAMED: dict[str, Any] = LORA | ALL_TOKENS | {"per_device_train_batch_size": 4, "eval_steps": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> file. Rows of different lengths."""
    folder = tmp_path_factory.mktemp("rows")
    named = ("chats", "texts", "pairs", "labelled", "prompts", "gap", "bad", "val")
    made = {name: folder / f"{name}.jsonl" for name in named}
    for name in ("chats", "texts", "pairs", "labelled", "prompts"):
        made[name].write_text("".join(json.dumps(row) + "\n" for row in rows(name)))
    make_data(made["gap"], 8)
    made["gap"].write_text(made["gap"].read_text() + json.dumps({"nothing": 1}) + "\n")
    made["bad"].write_text('{"nothing": 1}\n')
    make_data(made["val"], 3)
    reward = folder / "reward.py"
    reward.write_text("def reward(completion_ids, **_):\n    return [sum(ids) % 5 / 5 for ids in completion_ids]\n")
    teacher = make_model(folder / "teacher", seed=1)
    return {name: str(file) for name, file in made.items()} | {"$reward": f"{reward}:reward", "$teacher": str(teacher)}


def placed(params: dict[str, Any], data: dict[str, str]) -> dict[str, Any]:
    """`params` with what they name by `$NAME`."""
    named = json.dumps(params)
    for name in ("$reward", "$teacher"):
        named = named.replace(name, data[name])
    given: dict[str, Any] = json.loads(named)
    return given


def rows(of: str) -> Iterator[dict[str, Any]]:
    for number in range(8):
        text = " ".join(["the red", "and", "blue name", "one two three"][: 1 + number % 4])
        turns = [{"role": "user", "content": f"number {number}"}, {"role": "assistant", "content": text}]
        if of == "texts":
            yield {"messages": turns[1:]}
        elif of == "prompts":
            yield {"messages": turns[:1]}
        elif of == "labelled":  # each prompt has the answer to another one, whichever are in its process's batch
            yield {"query": f"number {number}", "response": "the red and", "label": number % 4 > 0}
        else:
            yield {"messages": turns} | ({"rejected_response": "the blue value"} if of == "pairs" else {})


@pytest.fixture(scope="module")
def by_two(tiny: Path, data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, JobFolder]:
    """Name -> what two processes did."""
    folder = tmp_path_factory.mktemp("by-two")
    alike = COMMON | {"model": str(tiny), "ddp_backend": "gloo"}
    jobs = {
        name: make_job(
            folder / name, learned.task, **alike | {"dataset": data[learned.rows]} | placed(learned.params, data)
        )
        for name, learned in LEARNED.items()
    }
    for name in ("gap", "bad"):
        given = alike | STREAMED | {"dataset": data[name], "val_dataset": data["val"]}
        jobs[f"{name}, read"] = make_job(folder / f"{name}-read", "sft", **given)
        jobs[f"{name}, streamed"] = make_job(folder / f"{name}-streamed", "sft", **given, streaming=True)
    train_together(*jobs.values(), processes=2)
    return jobs


@pytest.mark.parametrize("name", LEARNED)
def test_two_processes_learn_what_one_learns_from_batches_of_twice_the_size(
    name: str, by_two: dict[str, JobFolder], tiny: Path, data: dict[str, str], tmp_path: Path
) -> None:
    learned = LEARNED[name]
    given = COMMON | {"model": str(tiny), "dataset": data[learned.rows]} | placed(learned.params, data)
    given.pop("deepspeed", None)
    given["per_device_train_batch_size"] *= 2
    one, two = trained(tmp_path / "one", learned.task, **given), by_two[name]

    assert sorted(steps(two)) == [1, 2, 3, 4]
    for number, metrics in steps(one).items():
        for told in learned.told:
            assert steps(two)[number][told] == pytest.approx(metrics[told], abs=1e-4), (number, told)
    alone, together = weights(one, 4), weights(two, 4)
    assert alone.keys() == together.keys()
    for key, tensor in alone.items():
        torch.testing.assert_close(together[key], tensor, atol=learned.close, rtol=0)


def test_two_processes_learn_from_a_stream_what_they_learn_without(by_two: dict[str, JobFolder]) -> None:
    read, streamed = by_two["gap, read"], by_two["gap, streamed"]

    for name, tensor in weights(read, 4).items():
        torch.testing.assert_close(weights(streamed, 4)[name], tensor, atol=1e-5, rtol=0)
    assert evaluations(streamed)[4] == pytest.approx(evaluations(read)[4], abs=1e-5)
    for job in (read, streamed):
        told = [event.message for event, _ in job.read_events() if isinstance(event, Message)]
        assert len([text for text in told if text.startswith("1 rows of")]) == 1, told


@pytest.mark.parametrize("how", ["read", "streamed"])
def test_data_that_cannot_be_used_ends_both_processes(by_two: dict[str, JobFolder], how: str) -> None:
    error = by_two[f"bad, {how}"].read_result().error

    assert error.code == "invalid_training_file"
    assert "Line 1 of bad.jsonl" in error.message
