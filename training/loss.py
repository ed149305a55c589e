"""The loss of supervised training, computed at the positions that are learned from, and nowhere else.

The number is that of TRL's SFTTrainer. TRL computes the output head at every position, in pieces that are computed
again in the backward pass, which saves memory and costs time: on a CPU about a third of a step. Here the head is
computed once, of the answers only; what the softmax of large batches would keep in float32 is computed again
instead.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.data.encode import IGNORED

PIECE = 1 << 26
"""Logits (256 MiB in float32) whose softmax is computed at a time, where there are more."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What one forward pass says of the positions that are learned from."""

    loss: Tensor
    """Scalar: the cross entropy, summed over the positions and divided by `num_items`."""
    correct: Tensor
    """(positions,) bool: whether the likeliest token is the label."""
    rows: Tensor
    """(positions,): the sample in the batch that each position belongs to."""


def answer_loss(model: nn.Module, inputs: Mapping[str, Any], num_items: Tensor | int | None) -> Learned:
    """The loss of one batch. `inputs["labels"]` (samples, tokens) is IGNORED where a token is not learned.

    `num_items`: what the sum is divided by; None: the positions of this batch.
    """
    targets = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)  # what each position is to predict
    learned = targets != IGNORED
    others = {name: value for name, value in inputs.items() if name != "labels"}
    with _only_at(learned, model):
        logits = model(**others, use_cache=False).logits  # (positions, vocabulary)
    wanted = targets[learned]
    total = _cross_entropy(logits, wanted)
    count = learned.sum() if num_items is None else torch.as_tensor(num_items)
    with torch.no_grad():
        correct = logits.argmax(-1) == wanted
    return Learned(total / count.clamp(min=1), correct, learned.nonzero()[:, 0])


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Summed, in float32, of `logits` (positions, vocabulary) and `wanted` (positions,)."""
    if logits.numel() <= PIECE:
        return nn.functional.cross_entropy(logits.float(), wanted, reduction="sum")
    rows = max(1, PIECE // logits.shape[-1])
    pieces = zip(logits.split(rows), wanted.split(rows), strict=True)
    return torch.stack([checkpoint(_cross_entropy, *piece, use_reentrant=False) for piece in pieces]).sum()


@contextmanager
def _only_at(positions: Tensor, model: nn.Module) -> Iterator[None]:
    """Have the output head see `positions` (samples, tokens) of the hidden states only, as (positions, hidden)."""
    head = extract_model_from_parallel(model).get_output_embeddings()

    def gather(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0][positions],)

    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()
