"""The trainers of GRPO and RLOO."""

from typing import Any

import torch
from torch import Tensor

from training.losses.advantages import Advantages, group_relative, leave_one_out
from training.losses.log_probs import TokenLogProbs
from training.losses.policy import (
    Clipped,
    Clipping,
    LossType,
    clipped_losses,
    divergence,
    summed,
    token_weights,
)
from training.params.rlhf import RlhfParams
from training.trainers.answers.generation import Batch
from training.trainers.groups import GroupsTrainer


class GrpoTrainer(GroupsTrainer):
    """The policy is held to the reference by the loss of each token."""

    def __init__(self, *given: Any, loss_type: LossType, **named: Any) -> None:
        """`loss_type`: see `token_weights`."""
        self.loss_type = loss_type
        super().__init__(*given, **named)
        self.clipping = _clipping(self.job.params)

    @property
    def needs_all(self) -> bool:
        return self.job.params.scale_rewards == "batch" or self.loss_type == "dapo"

    def advantages(self, rewards: Tensor, divergences: Tensor | None) -> Advantages:
        return group_relative(rewards, self.job.params.num_generations, self.job.params.scale_rewards)

    def loss(self, said: TokenLogProbs, batch: Batch, tokens: float) -> tuple[Tensor, Clipped]:
        old = said.log_probs.detach() if batch.old is None else batch.old
        clipped = clipped_losses(said.log_probs - old, batch.advantages[batch.rows], self.clipping)
        losses = clipped.losses
        if batch.reference is not None:
            kl = divergence(said.log_probs, batch.reference)
            losses = losses + self.beta * kl
            self._seen.add({"kl": (kl.sum(), torch.tensor(kl.numel()))})
        longest = self.job.params.max_completion_length
        weights = token_weights(self.loss_type, batch.rows, batch.answers, max_length=longest, tokens_of_a_step=tokens)
        loss = (losses * weights).sum()
        return loss if self.loss_type == "dapo" else loss / self.current_gradient_accumulation_steps, clipped


class RlooTrainer(GroupsTrainer):
    """The policy is held to the reference by the reward of each answer, which is one action."""

    @property
    def needs_old(self) -> bool:
        return self._reference is not None

    @property
    def needs_all(self) -> bool:
        return bool(self.job.params.normalize_advantages)

    def advantages(self, rewards: Tensor, divergences: Tensor | None) -> Advantages:
        if divergences is not None:
            rewards = rewards - self.beta * divergences
            self._seen.add({"kl": (divergences.sum(), torch.tensor(len(divergences)))})
        params = self.job.params
        return leave_one_out(rewards, params.num_generations, normalized=params.normalize_advantages)

    def loss(self, said: TokenLogProbs, batch: Batch, tokens: float) -> tuple[Tensor, Clipped]:
        old = said.log_probs.detach() if batch.old is None else batch.old
        log_ratio = summed(said.log_probs - old, batch.rows, batch.answers)
        clipped = clipped_losses(log_ratio, batch.advantages, _clipping(self.job.params))
        return clipped.losses.mean() / self.current_gradient_accumulation_steps, clipped


def _clipping(params: RlhfParams) -> Clipping:
    high = params.epsilon if params.epsilon_high is None else params.epsilon_high
    return Clipping(low=params.epsilon, high=high, delta=params.delta)
