"""What answers are worth, and what is told of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.losses.advantages import weighted_sum
from training.rollouts.types import Rollout
from training.trainers.answers.judges import mean


@dataclass(frozen=True, slots=True)
class Judged:
    """Answers and what they are worth."""

    answers: list[Rollout]
    """Those of this process."""
    rewards: Tensor
    """(answers of all processes, judges): NaN where one does not apply."""
    alike: Tensor
    """(answers of all processes,) bool: see `Advantages`."""


def together(parts: Sequence[Judged]) -> Judged:
    return Judged(
        [answer for part in parts for answer in part.answers],
        torch.cat([part.rewards for part in parts]),
        torch.cat([part.alike for part in parts]),
    )


def told(judged: Judged, weights: Tensor, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums of what is told of answers, by name, each with what it is divided by."""
    answers, rewards = judged.answers, judged.rewards
    total = weighted_sum(rewards, weights)
    lengths = torch.tensor([len(answer.token_ids) for answer in answers])
    count, one = torch.tensor(len(answers)), torch.tensor(1)
    sums = {
        "reward": mean(total),
        "reward_std": (_spread(total), one),
        "frac_reward_zero_std": (judged.alike.sum(), torch.tensor(judged.alike.numel())),
        "completions/mean_length": (lengths.sum(), count),
        "completions/min_length": (lengths.min(), one),
        "completions/max_length": (lengths.max(), one),
        "completions/clipped_ratio": (torch.tensor(sum(not answer.ended for answer in answers)), count),
    }
    for number, name in enumerate(names):
        sums[f"rewards/{name}/mean"] = mean(rewards[:, number])
        sums[f"rewards/{name}/std"] = _spread(rewards[:, number]), one
    return sums


def _spread(values: Tensor) -> Tensor:
    known = values[~values.isnan()]
    return known.std() if len(known) > 1 else torch.tensor(0.0)
