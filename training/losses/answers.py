"""The loss of supervised training, which is the number of TRL's SFTTrainer."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from training.data.encode import IGNORED
from training.losses.log_probs import judge_at, next_of, token_log_probs
from training.losses.tokens import TokenLoss


@dataclass(frozen=True, slots=True)
class Learned:
    """What one forward pass says of the positions that are learned from."""

    loss: Tensor
    """Scalar: the cross entropy, times what each token weighs, summed over the positions and divided by `num_items`."""
    correct: Tensor
    """(positions,) bool: whether the likeliest token is the label."""
    rows: Tensor
    """(positions,): number of the sample in the batch that each position belongs to."""
    aux_loss: Tensor | None
    """Scalar: how unevenly a mixture of experts uses them, where `output_router_logits` among the inputs asks."""


def answer_loss(
    model: nn.Module, inputs: Mapping[str, Any], num_items: Tensor | int | None, token_loss: TokenLoss | None = None
) -> Learned:
    """The loss of one batch. `inputs["labels"]` (samples, tokens) is IGNORED where a token is not learned;
    `inputs["loss_scale"]`, where it is given, is what the loss of each token is multiplied by. Where the batch is a
    part of another one, `inputs["shift_labels"]` has the label of the token after each, and `loss_scale` is that one's.

    `num_items`: what the sum is divided by; None: the positions of this batch. `token_loss`: in place of the cross
    entropy.
    """
    targets, scale = inputs.get("shift_labels"), inputs.get("loss_scale")
    if targets is None:
        targets = next_of(inputs["labels"])
        scale = None if scale is None else nn.functional.pad(scale[:, 1:], (0, 1))
    positions = targets != IGNORED
    wanted = targets[positions]
    others = {name: each for name, each in inputs.items() if name not in ("labels", "shift_labels", "loss_scale")}
    count = positions.sum() if num_items is None else torch.as_tensor(num_items)
    if token_loss is None:
        said = token_log_probs(model, others, positions, wanted)
        losses, correct, aux_loss = -said.log_probs, said.correct, said.aux_loss
    else:
        losses, correct, _, aux_loss = judge_at(model, others, positions, wanted, partial(_lost, token_loss))
    if scale is not None:
        losses = losses * scale[positions]
    loss = losses.sum() / count.clamp(min=1)
    return Learned(loss, correct, _samples(inputs)[positions], aux_loss)


def _lost(token_loss: TokenLoss, logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, None]:
    """What each token loses, and whether it is the likeliest one: (positions,) each."""
    return token_loss(logits.float(), wanted), logits.detach().argmax(-1) == wanted, None


def _samples(inputs: Mapping[str, Any]) -> Tensor:
    """(rows, tokens): numbers that differ between samples. In a packed row, positions begin again with each."""
    labels, positions = inputs["labels"], inputs.get("position_ids")
    if positions is None:
        return torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
    return (positions == 0).flatten().cumsum(0).view_as(labels)
