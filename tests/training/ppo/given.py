"""Answers that are given instead of drawn, and the models that are asked about them: what TRL was recorded on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from engines.errors import TuneserveError
from tests.training.jobs import make_model
from training.rollouts.types import Asked, Drawing, Rollout

PAD, EOS = 0, 1
PROMPTS = [[11 + 7 * i + j for j in range(3 + i % 4)] for i in range(8)]
LONGEST = 9
STEPS = 4
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.1,
    "max_grad_norm": 0.0,  # TRL's PPO never clips
    "response_length": LONGEST,
    "num_sample_generations": 0,
    "per_device_train_batch_size": 8,
}


@dataclass(frozen=True)
class Case:
    """Parameters that TRL and we know by the same names."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    ends: bool = True
    """Whether answers end before they have to."""


CASES = {
    "plain": Case(ends=False),
    "ended": Case(),
    "accumulated": Case(
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "temperature": 1.3}, ends=False
    ),
    "every setting": Case(
        {
            "num_mini_batches": 2, "num_ppo_epochs": 3, "kl_coef": 0.3, "cliprange": 0.05, "vf_coef": 0.5,
            "cliprange_value": 0.1, "gamma": 0.9, "lam": 0.8, "temperature": 0.5, "missing_eos_penalty": 1.5,
            "local_rollout_forward_batch_size": 4,
        }
    ),
    "whitened": Case({"whiten_rewards": True, "num_ppo_epochs": 2, "temperature": 1.0}),
}  # fmt: skip


def answers_of(step: int, *, ends: bool) -> list[list[int]]:
    """An answer to each of PROMPTS. Some of those that may end have all the tokens, and do not."""
    made = torch.Generator().manual_seed(step)
    found = []
    for i in range(len(PROMPTS)):
        length = LONGEST if not ends or i % 3 == 0 else int(torch.randint(1, LONGEST, (1,), generator=made))
        ids = torch.randint(2, 250, (length,), generator=made).tolist()
        found.append([*ids[:-1], EOS] if length < LONGEST else ids)
    return found


def save_policy(folder: Path) -> Path:
    return make_model(folder)


def save_reward_model(policy: Path, folder: Path, *, seed: int = 5, labels: int = 1, sees: bool = True) -> Path:
    """A reward model with the tokenizer of `policy`. One that does not see what came before judges the last token."""
    config = AutoConfig.from_pretrained(policy)
    config.num_labels = labels
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    if not sees:
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.data.zero_()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((policy / name).read_bytes())
    return folder


class GivenRollouts:
    """Draws from `answers_of` what `version` is the step of."""

    def __init__(self, *, ends: bool, version: int = 0) -> None:
        self.version = version
        self._ends = ends

    def draw(
        self, prompts: Sequence[Sequence[int]], n: int, drawing: Drawing, *, seed: int, places: Sequence[int] = ()
    ) -> list[list[Rollout]]:
        answers = answers_of(self.version, ends=self._ends)
        drawn = []
        for prompt in prompts:
            ids = answers[PROMPTS.index(list(prompt))]
            rollout = Rollout(
                prompt_ids=prompt, token_ids=ids, log_probs=[0.0] * len(ids), ended=ids[-1] == EOS, version=self.version
            )
            drawn.append([rollout] * n)
        return drawn

    def ask_base(self, asked: Sequence[Asked]) -> list[list[int] | TuneserveError]:
        raise AssertionError("no grader asks the base model here")

    def take_over(self) -> None:
        self.version += 1

    def close(self) -> None:
        pass
