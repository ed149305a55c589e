"""PPO's arithmetic: rewards, advantages and losses of whole answers, without a model.

Schulman et al. 2017 (arXiv:1707.06347) for the losses, Schulman et al. 2015 (arXiv:1506.02438) for the advantages,
Ouyang et al. 2022 (arXiv:2203.02155) for the reward of a token, Huang et al. 2024 (arXiv:2403.17031) for the details.

Tensors are (answers, tokens), as wide as the longest answer of the batch, each answer at the left. `answered` marks its
tokens. An answer shorter than that has one position more, at which it has ended and nothing can be chosen any more:
`valued` marks that one too. There the reward model's judgement comes, and the value of the end is learned, as in TRL;
the longest answers get theirs at their last token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def whitened(
    values: Tensor, mask: Tensor, *, keep_mean: bool = False, summed: Callable[[Tensor], Tensor] = lambda own: own
) -> Tensor:
    """`values` with variance 1 and, unless `keep_mean`, mean 0 over `mask`; 0 outside of it (Huang et al. 2024,
    reward and advantage whitening). `summed`: makes the sum of a batch of the sum of this part of it."""
    total, count = summed(torch.stack([(values * mask).sum(), mask.sum()]))
    mean = total / count.clamp(min=1)
    variance = summed(((values - mean).square() * mask).sum()) / (count - 1).clamp(min=1)
    scaled = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (scaled + mean if keep_mean else scaled).masked_fill(~mask, 0)


def token_rewards(scores: Tensor, kl: Tensor, answered: Tensor, kl_coef: float) -> Tensor:
    """The reward of each token: r(x, y) at the end, and everywhere -kl_coef * log(pi(y_t) / pi_ref(y_t)) (Ouyang et al.
    2022, equation 2, token by token).

    `scores`: (answers,); `kl`: that logarithm, 0 outside of `answered`.
    """
    rewards = -kl_coef * kl
    ends = answered.sum(-1).clamp(max=answered.shape[1] - 1)
    return rewards.scatter_add(1, ends[:, None], scores[:, None])


def advantages_of(rewards: Tensor, values: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2015, equation 16): A_t = delta_t + gamma * lam * A_(t+1) with
    delta_t = r_t + gamma * V_(t+1) - V_t."""
    following = torch.zeros_like(values[:, 0])
    advantage = torch.zeros_like(values[:, 0])
    found = []
    for at in reversed(range(values.shape[1])):
        advantage = rewards[:, at] + gamma * following - values[:, at] + gamma * lam * advantage
        following = values[:, at]
        found.append(advantage)
    return torch.stack(found[::-1], dim=1)


@dataclass(frozen=True, slots=True)
class Clipped:
    """A loss of each position, and where the clipped one was the larger."""

    losses: Tensor
    clipped: Tensor
    """bool"""


def policy_losses(log_ratio: Tensor, advantages: Tensor, cliprange: float) -> Clipped:
    """-min(rho * A, clip(rho, 1 - cliprange, 1 + cliprange) * A) (Schulman et al. 2017, equation 7), where rho is how
    much likelier a token has become: exp(`log_ratio`)."""
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return Clipped(torch.max(plain, bounded), bounded > plain)


def value_losses(values: Tensor, before: Tensor, returns: Tensor, cliprange: float) -> Clipped:
    """max((V - R)^2, (clip(V, V_old - cliprange, V_old + cliprange) - R)^2) / 2 (Huang et al. 2024, value clipping).

    `before`: V_old, what the value function said when the answers were judged.
    """
    plain = (values - returns).square()
    bounded = (values.clamp(before - cliprange, before + cliprange) - returns).square()
    return Clipped(0.5 * torch.max(plain, bounded), bounded > plain)
