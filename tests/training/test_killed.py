"""A training by preferences or rewards that is killed and goes on from its last checkpoint: it ends as if it had been
left alone."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.jobs import BRIEF, WORDS, make_job, trained, weights
from tests.training.ppo.given import save_reward_model
from tests.training.worker import Worker
from tests.until import until
from training.methods import METHODS

STEPS = 12
COMMON = BRIEF | {
    "max_steps": STEPS, "save_steps": 2, "learning_rate": 1e-3, "lora_rank": 4, "lora_dropout": 0.0,
    "per_device_train_batch_size": 4,
}  # fmt: skip
ANSWERED = {"temperature": 1.0, "num_generations": 4, "max_completion_length": 8}
OWN: dict[str, dict[str, Any]] = {
    "orpo": {},
    "kto": {},
    "rm": {},
    "gkd": {"temperature": 1.0, "response_length": 8, "lmbda": 1},
    "ppo": {"temperature": 1.0, "response_length": 8, "num_ppo_epochs": 2, "num_mini_batches": 2},
    "rloo": ANSWERED | {"reward_funcs": ["soft_overlong"]},
    "grpo": ANSWERED | {"num_iterations": 2, "steps_per_generation": 2, "reward_funcs": ["soft_overlong"]},
}
"""Method -> its parameters. Others learn by the same trainers."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two answers to each prompt, of which one is preferred."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rng = random.Random(1)

    def answer() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))

    asked = [{"role": "user", "content": f"number {i}"} for i in range(16)]
    lines = [
        {"prompt": [message], **{side: [{"role": "assistant", "content": answer()}] for side in ("chosen", "rejected")}}
        for message in asked
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def judge(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tiny, tmp_path_factory.mktemp("judge"))


@pytest.mark.parametrize("name", OWN)
def test_killed_and_gone_on_with_it_ends_as_if_left_alone(
    name: str, tiny: Path, judge: Path, rows: Path, tmp_path: Path
) -> None:
    assert name in METHODS
    by = {"gkd": {"teacher_model": str(tiny)}, "ppo": {"reward_model": str(judge)}}.get(name, {})
    params = COMMON | OWN[name] | by | {"rlhf_type": name, "model": str(tiny), "dataset": [str(rows)]}
    victim = make_job(tmp_path / "victim", "rlhf", **params)
    process = Worker(victim)
    try:
        until(victim.checkpoints, told=(victim.path / "worker.log").read_text)
    finally:
        process.kill()
        process.wait()

    last = victim.path / f"checkpoint-{victim.checkpoints()[-1]}"
    resumed = weights(trained(tmp_path / "resumed", "rlhf", **params, resume_from_checkpoint=str(last)), STEPS)
    whole = weights(trained(tmp_path / "whole", "rlhf", **params), STEPS)
    assert resumed.keys() == whole.keys()
    for key, weight in whole.items():
        torch.testing.assert_close(resumed[key], weight, atol=1e-6, rtol=0)
