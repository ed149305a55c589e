"""Losses of single tokens beside the cross entropy: functions of logits (tokens, vocabulary) and labels (tokens,) that
return (tokens,)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

TokenLoss = Callable[[Tensor, Tensor], Tensor]


def dft(logits: Tensor, labels: Tensor) -> Tensor:
    """Dynamic fine-tuning (Wu et al. 2025, arXiv:2508.05629, equation 9): the cross entropy times the token's own
    probability, as a constant, so that unlikely tokens do not weigh more than likely ones."""
    log_probs = torch.log_softmax(logits, dim=-1).gather(-1, labels[:, None]).squeeze(-1)
    return -log_probs.detach().exp() * log_probs


LOSSES: Mapping[str, TokenLoss] = {"dft": dft}
