"""The loss of supervised training, computed at the positions that are learned from, and nowhere else.

The number is that of TRL's SFTTrainer. TRL computes the output head at every position, in pieces that are computed
again in the backward pass, which saves memory and costs time: on a CPU about a third of a step. Here the head is
computed once, of the answers only; where these have so many logits that they should not all be held at once, it is
computed in pieces, and again in the backward pass.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.data.encode import IGNORED

logger = logging.getLogger(__name__)

PIECE = 1 << 26
"""Logits (256 MiB in float32) that are held at a time, where there are more."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What one forward pass says of the positions that are learned from."""

    loss: Tensor
    """Scalar: the cross entropy, summed over the positions and divided by `num_items`."""
    correct: Tensor
    """(positions,) bool: whether the likeliest token is the label."""
    rows: Tensor
    """(positions,): number of the sample in the batch that each position belongs to."""
    aux_loss: Tensor | None
    """Scalar: how unevenly a mixture of experts uses them, where `output_router_logits` among the inputs asks."""


def answer_loss(model: nn.Module, inputs: Mapping[str, Any], num_items: Tensor | int | None) -> Learned:
    """The loss of one batch. `inputs["labels"]` (samples, tokens) is IGNORED where a token is not learned.

    `num_items`: what the sum is divided by; None: the positions of this batch.
    """
    targets = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)  # what each position is to predict
    learned = targets != IGNORED
    wanted = targets[learned]
    others = {name: value for name, value in inputs.items() if name != "labels"}
    total, correct, aux_loss = _forward(model, others, learned, wanted)
    count = learned.sum() if num_items is None else torch.as_tensor(num_items)
    return Learned(total / count.clamp(min=1), correct, _samples(inputs)[learned], aux_loss)


def _samples(inputs: Mapping[str, Any]) -> Tensor:
    """(rows, tokens): numbers that differ between samples. In a packed row, positions begin again with each."""
    labels, positions = inputs["labels"], inputs.get("position_ids")
    if positions is None:
        return torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
    return (positions == 0).flatten().cumsum(0).view_as(labels)


def _forward(
    model: nn.Module, inputs: Mapping[str, Any], learned: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The summed cross entropy, which positions are right, and the auxiliary loss."""
    unwrapped = extract_model_from_parallel(model)
    head = unwrapped.get_output_embeddings()
    config = unwrapped.config.get_text_config()
    if wanted.numel() * config.vocab_size > PIECE:
        with _in_pieces(head, _Pieces(learned, wanted, PIECE // config.vocab_size, config)) as pieces:
            outputs = model(**inputs, use_cache=False)
        if torch.allclose(outputs.logits.float(), pieces.first):
            return pieces.total, pieces.correct, outputs.get("aux_loss")
        logger.warning("The model changes its logits in a way of its own: all of them are held at once.")
    with _only_at(learned, head):
        outputs = model(**inputs, use_cache=False)  # its logits: (positions, vocabulary)
    with torch.no_grad():
        correct = outputs.logits.argmax(-1) == wanted
    return _cross_entropy(outputs.logits, wanted), correct, outputs.get("aux_loss")


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Summed, in float32, of `logits` (positions, vocabulary) and `wanted` (positions,)."""
    return nn.functional.cross_entropy(logits.float(), wanted, reduction="sum")


@contextmanager
def _only_at(positions: Tensor, head: nn.Module) -> Iterator[None]:
    """Have the output head see `positions` (samples, tokens) of the hidden states only, as (positions, hidden)."""

    def gather(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0][positions],)

    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


class _Pieces:
    """The output head and the loss, computed of some positions at a time, and again in the backward pass."""

    total: Tensor
    """Scalar: the summed cross entropy."""
    correct: Tensor
    """(positions,) bool."""
    first: Tensor
    """(1, vocabulary): the logits of the first position."""

    def __init__(self, positions: Tensor, wanted: Tensor, rows: int, config: Any) -> None:
        """`positions`: (samples, tokens) bool; `rows`: positions at a time; `config`: the language model's."""
        self._positions = positions
        self._wanted = wanted
        self._rows = max(1, rows)
        self._config = config

    def compute(self, project: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """What the head returns in place of all logits: those of the first position, which the model goes on with.

        `project`: what the head does; `hidden`: (samples, tokens, hidden).
        """

        def learn(piece: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
            logits = self._finished(project(piece))
            return _cross_entropy(logits, wanted), logits.detach().argmax(-1) == wanted

        chosen = hidden[self._positions]
        pieces = zip(chosen.split(self._rows), self._wanted.split(self._rows), strict=True)
        totals, correct = zip(*(checkpoint(learn, *piece, use_reentrant=False) for piece in pieces), strict=True)
        self.total, self.correct = torch.stack(totals).sum(), torch.cat(correct)
        first = project(chosen[:1])
        self.first = self._finished(first).detach().float()
        return first

    def _finished(self, logits: Tensor) -> Tensor:
        """What models do to the logits after the head: Cohere and Granite scale them, Gemma bounds them."""
        if scale := getattr(self._config, "logit_scale", None):
            logits = logits * scale
        if scale := getattr(self._config, "logits_scaling", None):
            logits = logits / scale
        if bound := getattr(self._config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / bound) * bound
        return logits


@contextmanager
def _in_pieces(head: nn.Module, pieces: _Pieces) -> Iterator[_Pieces]:
    """Have the output head compute the loss instead of logits."""
    project = head.forward
    own = vars(head).get("forward")  # which libraries put in place of the class's
    head.forward = partial(pieces.compute, project)
    try:
        yield pieces
    finally:
        del head.forward
        if own is not None:
            head.forward = own
