"""Losses by which a policy learns from answers that were judged: GRPO's, of each token, and RLOO's, of each answer.

An answer's tokens are a run of positions, as `token_log_probs` has them; `rows` says which answer each belongs to.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipping:
    """How far a probability may move from what it was: the ratio of the two stays between 1 - `low` and 1 + `high`."""

    low: float = 0.2
    high: float = 0.2
    """Higher than `low`: unlikely tokens may gain (Yu et al. 2025, DAPO, arXiv:2503.14476, section 3.1)."""
    delta: float | None = None
    """Upper bound of the ratio where the advantage is negative, which otherwise has none (two-sided clipping,
    arXiv:2505.07291)."""


@dataclass(frozen=True, slots=True)
class Clipped:
    """The loss of each token or answer, and where it was clipped."""

    losses: Tensor
    low: Tensor
    """bool: the ratio has fallen too far for a worse answer."""
    high: Tensor
    """bool: it has risen too far for a better one."""


def clipped_losses(log_ratio: Tensor, advantages: Tensor, clipping: Clipping) -> Clipped:
    """-min(r A, clip(r) A), with r = exp(log_ratio) (Schulman et al. 2017, arXiv:1707.06347, equation 7)."""
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clipping.low, 1 + clipping.high)
    if clipping.delta is not None:
        ratio = ratio.clamp(max=clipping.delta)
    return Clipped(
        -torch.min(ratio * advantages, bounded * advantages),
        (ratio < 1 - clipping.low) & (advantages < 0),
        (ratio > 1 + clipping.high) & (advantages > 0),
    )


def divergence(log_probs: Tensor, reference: Tensor) -> Tensor:
    """KL divergence from the reference by each token, unbiased and never negative (Schulman 2020, "Approximating KL
    divergence", k3; equation 4 of GRPO)."""
    difference = reference - log_probs
    return difference.exp() - difference - 1


def token_weights(
    loss_type: LossType, rows: Tensor, answers: int, *, max_length: int, tokens_of_a_step: float
) -> Tensor:
    """(positions,): what the loss of each token counts, so that their weighted sum is the loss of the batch.

    - grpo: answers count alike, whatever their length (equation 3)
    - bnpo: tokens of the batch count alike (Xiao et al. 2025, arXiv:2506.02864)
    - dr_grpo: tokens count alike in all batches, as all are divided by the most that an answer may have
      (arXiv:2503.20783)
    - dapo: tokens of all batches of a step count alike (arXiv:2503.14476, section 3.3); the sum over these is the loss

    rows: (positions,) the answer that each token is of
    answers: number of answers in the batch
    tokens_of_a_step: tokens that are learned from in the batches of a step, in each process on average
    """
    ones = torch.ones_like(rows, dtype=torch.float32)
    if loss_type == "grpo":
        lengths = torch.zeros(answers, device=rows.device).index_add(0, rows, ones)
        return ones / lengths[rows] / answers
    if loss_type == "bnpo":
        return ones / max(1, len(rows))
    return ones / (answers * max_length if loss_type == "dr_grpo" else max(1.0, tokens_of_a_step))


def summed(values: Tensor, rows: Tensor, answers: int) -> Tensor:
    """(positions,) -> (answers,)"""
    return torch.zeros(answers, dtype=values.dtype, device=values.device).index_add(0, rows, values)
