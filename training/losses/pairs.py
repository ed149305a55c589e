"""Losses over pairs of answers to one prompt, of which the chosen one is to become likelier than the rejected one.

Each is a function of what the model, and most often a reference model, says of the two answers. With `chosen` and
`rejected` for the log-ratio log p(answer) - log p_reference(answer), `margin` for their difference, s for the logistic
function and e for `label_smoothing`, the equations stand beside the functions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

DISCOPOP_TEMPERATURE = 0.05
"""The paper's."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """What is said of answers, (pairs, 2): the chosen one first."""

    log_probs: Tensor
    """Sums over the tokens of each answer, with gradients."""
    reference: Tensor
    """The same of the reference model; zeros where a loss has none."""
    tokens: Tensor
    """Numbers of tokens, at least 1."""

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        """Log-ratios of the chosen and the rejected answers: (pairs,) each."""
        chosen, rejected = (self.log_probs - self.reference).unbind(-1)
        return chosen, rejected

    @property
    def margin(self) -> Tensor:
        """(pairs,)"""
        chosen, rejected = self.ratios
        return chosen - rejected

    @property
    def mean_margin(self) -> Tensor:
        """(pairs,): that of the log-ratios of a token."""
        chosen, rejected = ((self.log_probs - self.reference) / self.tokens).unbind(-1)
        return chosen - rejected

    @property
    def mean_log_probs(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of a token of the chosen and the rejected answers: (pairs,) each."""
        chosen, rejected = (self.log_probs / self.tokens).unbind(-1)
        return chosen, rejected


@dataclass(frozen=True, slots=True)
class Weights:
    """Numbers that losses read."""

    beta: float
    label_smoothing: float = 0.0
    gamma: float = 0.0


def sigmoid(pairs: Pairs, w: Weights) -> Tensor:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7): -log s(beta margin). With label smoothing (Mitchell
    2023, "A note on DPO with noisy preferences"): -(1 - e) log s(beta margin) - e log s(-beta margin)."""
    return _smoothed(w.beta * pairs.margin, w)


def sigmoid_norm(pairs: Pairs, w: Weights) -> Tensor:
    """DPO of the log-ratios of a token, as in Tulu 3 (Lambert et al. 2024, arXiv:2411.15124, equation 6)."""
    return -logsigmoid(w.beta * pairs.mean_margin)


def hinge(pairs: Pairs, w: Weights) -> Tensor:
    """RSO's (Liu et al. 2023, arXiv:2309.06657, equation 12), after SLiC (Zhao et al. 2023, arXiv:2305.10425):
    max(0, 1 - beta margin)."""
    return torch.relu(1 - w.beta * pairs.margin)


def ipo(pairs: Pairs, w: Weights) -> Tensor:
    """IPO (Azar et al. 2023, arXiv:2310.12036, equation 17): (margin - 1 / (2 beta))^2, the margin being that of a
    token, as its authors computed it."""
    return (pairs.mean_margin - 1 / (2 * w.beta)) ** 2


def exo_pair(pairs: Pairs, w: Weights) -> Tensor:
    """EXO (Ji et al. 2024, arXiv:2402.00856, equation 16): the divergence KL(q || p) of q = s(+-beta margin) from
    p = (1 - e, e)."""
    x = w.beta * pairs.margin
    right = torch.sigmoid(x) * (logsigmoid(x) - math.log1p(-w.label_smoothing))
    wrong = torch.sigmoid(-x) * (logsigmoid(-x) - math.log(w.label_smoothing))
    return right + wrong


def nca_pair(pairs: Pairs, w: Weights) -> Tensor:
    """NCA (Chen et al. 2024, arXiv:2402.05369, equation 14) of two answers:
    -log s(beta chosen) - (log s(-beta chosen) + log s(-beta rejected)) / 2."""
    chosen, rejected = pairs.ratios
    return -logsigmoid(w.beta * chosen) - 0.5 * (logsigmoid(-w.beta * chosen) + logsigmoid(-w.beta * rejected))


def robust(pairs: Pairs, w: Weights) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409, equation 12), unbiased where the part e of the preferences
    is wrong: (-(1 - e) log s(beta margin) + e log s(-beta margin)) / (1 - 2 e)."""
    x, e = w.beta * pairs.margin, w.label_smoothing
    return (e * logsigmoid(-x) - (1 - e) * logsigmoid(x)) / (1 - 2 * e)


def bco_pair(pairs: Pairs, w: Weights) -> Tensor:
    """The classifier's cross entropy of BCO (Jung et al. 2024, arXiv:2404.04656, equation 8), without its shift of
    rewards: -log s(beta chosen) - log s(-beta rejected)."""
    chosen, rejected = pairs.ratios
    return -logsigmoid(w.beta * chosen) - logsigmoid(-w.beta * rejected)


def sppo_hard(pairs: Pairs, w: Weights) -> Tensor:
    """SPPO (Wu et al. 2024, arXiv:2405.00675, equation 4.7) where the chosen answer wins for certain:
    (chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2."""
    chosen, rejected = pairs.ratios
    return (chosen - 0.5 / w.beta) ** 2 + (rejected + 0.5 / w.beta) ** 2


def aot(pairs: Pairs, w: Weights) -> Tensor:
    """AOT (Melnyk et al. 2024, arXiv:2406.05882) of pairs: DPO's loss between the sorted margins of the model and the
    sorted margins of the reference, of the whole batch."""
    said, reference = (each[:, 0] - each[:, 1] for each in (pairs.log_probs, pairs.reference))
    return _smoothed(w.beta * (said.sort().values - reference.sort().values), w)


def aot_unpaired(pairs: Pairs, w: Weights) -> Tensor:
    """AOT where answers belong to no pair: DPO's loss between sorted `chosen` and sorted `rejected`."""
    chosen, rejected = pairs.ratios
    return _smoothed(w.beta * (chosen.sort().values - rejected.sort().values), w)


def apo_zero(pairs: Pairs, w: Weights) -> Tensor:
    """APO-zero (D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 7), for chosen answers that are better than the
    model's: 1 - s(beta chosen) + s(beta rejected)."""
    chosen, rejected = pairs.ratios
    return 1 - torch.sigmoid(w.beta * chosen) + torch.sigmoid(w.beta * rejected)


def apo_down(pairs: Pairs, w: Weights) -> Tensor:
    """APO-down (equation 8 there), for chosen answers that are worse than the model's: s(beta chosen) + 1 -
    s(beta margin)."""
    chosen, _ = pairs.ratios
    return torch.sigmoid(w.beta * chosen) + 1 - torch.sigmoid(w.beta * pairs.margin)


def discopop(pairs: Pairs, w: Weights) -> Tensor:
    """DiscoPOP (Lu et al. 2024, arXiv:2406.08414, equation 5): with x = beta margin and m = s(x / 0.05),
    -(1 - m) log s(x) + m exp(-x)."""
    x = w.beta * pairs.margin
    mixed = torch.sigmoid(x / DISCOPOP_TEMPERATURE)
    return (1 - mixed) * -logsigmoid(x) + mixed * torch.exp(-x)


def simpo(pairs: Pairs, w: Weights) -> Tensor:
    """SimPO (Meng et al. 2024, arXiv:2405.14734, equation 6): -log s(beta (difference of the log-probabilities of a
    token) - gamma)."""
    chosen, rejected = pairs.mean_log_probs
    return _smoothed(w.beta * (chosen - rejected) - w.gamma, w)


def odds_ratio(pairs: Pairs, w: Weights) -> Tensor:
    """ORPO's (Hong et al. 2024, arXiv:2403.07691, equations 4 to 7): -beta log s(log odds(chosen) - log
    odds(rejected)), where odds(y) = p / (1 - p) and log p is the log-probability of a token."""
    chosen, rejected = pairs.mean_log_probs
    return -w.beta * logsigmoid((chosen - _log1mexp(chosen)) - (rejected - _log1mexp(rejected)))


def _smoothed(x: Tensor, w: Weights) -> Tensor:
    e = w.label_smoothing
    return -(1 - e) * logsigmoid(x) - e * logsigmoid(-x) if e else -logsigmoid(x)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of x < 0, exact on both ends. A token that is certain counts as one that is nearly so."""
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    return torch.where(x < -math.log(2), torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))


LOSSES: dict[str, Callable[[Pairs, Weights], Tensor]] = {
    loss.__name__: loss
    for loss in (
        sigmoid, sigmoid_norm, hinge, ipo, exo_pair, nca_pair, robust, bco_pair, sppo_hard, aot, aot_unpaired,
        apo_zero, apo_down, discopop, simpo, odds_ratio,
    )
}  # fmt: skip
"""Name -> the loss of each pair, (pairs,)."""
