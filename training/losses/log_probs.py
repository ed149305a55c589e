"""Log-probabilities of tokens under a model, computed at the positions that are asked about, and nowhere else.

TRL computes the output head at every position, in pieces that are computed again in the backward pass, which saves
memory and costs time: on a CPU about a third of a step. Here the head is computed once, of the answers only; where
these have so many logits that they should not all be held at once, it is computed in pieces, and again in the backward
pass.
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
ROWS = 1 << 22
"""Logits (16 MiB in float32) that are judged at a time."""


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """What one forward pass says of the tokens asked about: (positions,), row by row."""

    log_probs: Tensor
    """float32, with gradients."""
    correct: Tensor
    """bool: whether the likeliest token is the one asked about."""
    entropy: Tensor | None
    """float32, in nats, of the distribution at each position, without gradients. None unless asked for."""
    aux_loss: Tensor | None
    """Scalar: how unevenly a mixture of experts uses them, where `output_router_logits` among the inputs asks."""


def asked_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """`labels` (samples, tokens), IGNORED where nothing is asked -> what `token_log_probs` takes: the positions
    (samples, tokens) bool that predict a label, each one before it, and those labels (positions,)."""
    targets = next_of(labels)
    positions = targets != IGNORED
    return positions, targets[positions]


def next_of(labels: Tensor) -> Tensor:
    """(samples, tokens): of each token, the label of the next one."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def token_log_probs(
    model: nn.Module,
    inputs: Mapping[str, Any],
    positions: Tensor,
    wanted: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> TokenLogProbs:
    """`inputs`: the model's, without labels. `temperature`: what the logits are divided by first."""
    judge = partial(_judged, temperature=temperature, entropy=entropy)
    return TokenLogProbs(*judge_at(model, inputs, positions, wanted, judge))


Judged = tuple[Tensor, Tensor, Tensor | None]
"""Log-probabilities, whether they are the highest, entropies: (positions,) each."""
Judge = Callable[[Tensor, Tensor], Judged]
"""What is made of logits (positions, vocabulary) and what is known of these positions (positions, ...)."""


def judge_at(
    model: nn.Module, inputs: Mapping[str, Any], positions: Tensor, known: Tensor, judge: Judge
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """What `judge` makes of the logits at `positions` (samples, tokens), of a piece of them at a time where there are
    many; then the auxiliary loss.

    `inputs`: the model's, without labels. `known`: (positions, ...), row by row.
    """
    unwrapped = extract_model_from_parallel(model)
    head = unwrapped.get_output_embeddings()
    config = unwrapped.config.get_text_config()
    divided = hasattr(
        head.weight, "ds_id"
    )  # by ZeRO-3, which would not gather it again for a piece in the backward pass
    if len(known) * config.vocab_size > PIECE and not divided:
        with _in_pieces(head, _Pieces(positions, known, PIECE // config.vocab_size, config, judge)) as pieces:
            outputs = model(**inputs, use_cache=False)
        if torch.allclose(outputs.logits.float(), pieces.first):
            return *pieces.judged, _aux_loss(outputs)
        logger.warning("The model changes its logits in a way of its own: all of them are held at once.")
    with only_at(positions, head):
        outputs = model(**inputs, use_cache=False)  # its logits: (positions, vocabulary)
    return *judge(outputs.logits, known), _aux_loss(outputs)


def _aux_loss(outputs: Any) -> Tensor | None:
    found: Tensor | None = outputs.get("aux_loss")
    return None if found is None else found.float()


def _judged(logits: Tensor, wanted: Tensor, *, temperature: float, entropy: bool) -> Judged:
    """Of `logits` (positions, vocabulary) and `wanted` (positions,)."""
    log_probs, correct, spread = _LogProbs.apply(logits, wanted, temperature, entropy)
    return log_probs, correct, spread


class _LogProbs(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """Log-probabilities of which nothing as large as the logits is kept besides these: some rows are judged at a time,
    in float32, in the backward pass once more, where the gradient takes the place of the logits."""

    @staticmethod
    def forward(
        context: Any, logits: Tensor, wanted: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        context.save_for_backward(logits, wanted)
        context.temperature = temperature
        judged = [
            _judged_rows(_log_softmax(rows, temperature), asked, entropy) for rows, asked in _by_rows(logits, wanted)
        ]
        log_probs, correct, spread = zip(*judged, strict=True)
        found = torch.cat(correct)
        context.mark_non_differentiable(found)
        spreads = None
        if entropy:
            spreads = torch.cat(spread)
            context.mark_non_differentiable(found, spreads)
        return torch.cat(log_probs), found, spreads

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits, wanted = context.saved_tensors
        for rows, asked, grad in _by_rows(logits, wanted, grads[0]):
            changes = _log_softmax(rows, context.temperature).exp_().mul_(-grad[:, None])
            changes.scatter_add_(1, asked[:, None], grad[:, None])
            rows.copy_(changes if context.temperature == 1 else changes.div_(context.temperature))
        return logits, None, None, None


def _by_rows(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of some positions at a time."""
    count = max(1, ROWS // logits.shape[-1])
    return zip(*(each.split(count) for each in (logits, *others)), strict=True)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.float()
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def _judged_rows(every: Tensor, wanted: Tensor, entropy: bool) -> Judged:
    """Of log-probabilities (positions, vocabulary)."""
    log_probs = every.gather(1, wanted[:, None]).squeeze(1)
    return log_probs, every.argmax(-1) == wanted, _entropy(every) if entropy else None


def _entropy(log_probs: Tensor) -> Tensor:
    """Of `log_probs` (positions, vocabulary), some of which may be minus infinity."""
    return -log_probs.exp().mul_(log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)


@contextmanager
def only_at(positions: Tensor, head: nn.Module) -> Iterator[None]:
    """Have the output head see `positions` (samples, tokens) of the hidden states only, as (positions, hidden)."""

    def gather(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0][positions],)

    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


class _Pieces:
    """The output head and what is made of its logits, computed of some positions at a time, and again in the backward
    pass."""

    judged: Judged
    first: Tensor
    """(1, vocabulary): the logits of the first position."""

    def __init__(self, positions: Tensor, known: Tensor, rows: int, config: Any, judge: Judge) -> None:
        """`positions`: (samples, tokens) bool; `rows`: positions at a time; `config`: the language model's."""
        self._positions = positions
        self._known = known
        self._rows = max(1, rows)
        self._config = config
        self._judge = judge

    def compute(self, project: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """What the head returns in place of all logits: those of the first position, which the model goes on with.

        `project`: what the head does; `hidden`: (samples, tokens, hidden).
        """

        def judge(piece: Tensor, known: Tensor) -> Judged:
            return self._judge(finished(project(piece), self._config), known)

        chosen = hidden[self._positions]
        pieces = zip(chosen.split(self._rows), self._known.split(self._rows), strict=True)
        judged = [checkpoint(judge, *piece, use_reentrant=False) for piece in pieces]
        log_probs, correct, entropy = zip(*judged, strict=True)
        spread = None if entropy[0] is None else torch.cat(entropy)
        self.judged = torch.cat(log_probs), torch.cat(correct), spread
        first = project(chosen[:1])
        self.first = finished(first, self._config).detach().float()
        return first


def finished(logits: Tensor, config: Any) -> Tensor:
    """What models do to the logits after the head: Cohere and Granite scale them, Gemma bounds them. `config`: the
    language model's."""
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if scale := getattr(config, "logits_scaling", None):
        logits = logits / scale
    if bound := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / bound) * bound
    return logits


@contextmanager
def _in_pieces(head: nn.Module, pieces: _Pieces) -> Iterator[_Pieces]:
    """Have the output head judge tokens instead of returning logits."""
    project = head.forward
    own = vars(head).get("forward")  # which libraries put in place of the class's
    head.forward = partial(pieces.compute, project)
    try:
        yield pieces
    finally:
        del head.forward
        if own is not None:
            head.forward = own
