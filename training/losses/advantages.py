"""How much better an answer is than the others to the same prompt."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

SMALL = 1e-4
"""Added to a standard deviation, as it may be 0."""


@dataclass(frozen=True, slots=True)
class Advantages:
    advantages: Tensor
    """(answers,)"""
    alike: Tensor
    """(answers,) bool: all answers that it is compared with have the same reward, so that nothing is learned of it."""


def weighted_sum(rewards: Tensor, weights: Tensor) -> Tensor:
    """`rewards` (answers, judges), NaN where one does not apply -> (answers,), NaN where none does."""
    total = (rewards * weights).nansum(1)
    return torch.where(rewards.isnan().all(1), torch.nan, total)


def group_relative(rewards: Tensor, n: int, scale: Literal["group", "batch", "none"]) -> Advantages:
    """GRPO's (Shao et al. 2024, arXiv:2402.03300, section 4.1.2): a reward less the mean of its group, divided by the
    standard deviation of the group or the batch. Without it (Liu et al. 2025, Dr. GRPO, arXiv:2503.20783), prompts that
    are nearly always or never answered well do not weigh more than others.

    `rewards`: (answers,), those of each prompt `n` in a row, NaN where nothing is known.
    """
    groups = rewards.view(-1, n)
    centred = (groups - groups.nanmean(1, keepdim=True)).flatten()
    spread = (_std(groups).repeat_interleave(n)) if scale != "batch" else _std(rewards[None]).expand_as(rewards)
    advantages = centred if scale == "none" else centred / (spread + SMALL)
    return Advantages(advantages.nan_to_num(nan=0.0), _is_none(spread))


def leave_one_out(rewards: Tensor, n: int, *, normalized: bool) -> Advantages:
    """RLOO's (Ahmadian et al. 2024, arXiv:2402.14740, section 3.2): a reward less the mean of the others of its group.

    `rewards`: as in `group_relative`.
    """
    groups = rewards.view(-1, n)
    others = (groups.nansum(1, keepdim=True) - groups) / ((~groups.isnan()).sum(1, keepdim=True) - 1)
    advantages = (groups - others).flatten()
    if normalized:
        advantages = (advantages - advantages.nanmean()) / (_std(advantages[None]) + SMALL)
    return Advantages(advantages.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), alike(rewards, n))


def alike(rewards: Tensor, n: int) -> Tensor:
    """(answers,) bool: whether all `n` answers to the prompt have the same reward. `rewards`: as in
    `group_relative`."""
    return _is_none(_std(rewards.view(-1, n)).repeat_interleave(n))


def _is_none(spread: Tensor) -> Tensor:
    return torch.isclose(spread, torch.zeros_like(spread))


def _std(rows: Tensor) -> Tensor:
    """(rows,): the standard deviation of each row, with Bessel's correction, of what is no NaN."""
    known = (~rows.isnan()).sum(1)
    squares = (rows - rows.nanmean(1, keepdim=True)).square().nansum(1)
    return (squares / (known - 1).clamp(min=1)).sqrt()
