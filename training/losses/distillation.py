"""What of a teacher's distribution a model is taught: the generalised Jensen-Shannon divergence of Agarwal et al. 2023
(arXiv:2306.13649), and the teacher."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engines.errors import UnsupportedModel
from training.losses.log_probs import Judged, finished


def generalized_jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """(positions,) float32, of logits (positions, vocabulary): equation 1 of the paper,

        D(beta)(P, Q) = beta KL(P, M) + (1 - beta) KL(Q, M)    with M = beta P + (1 - beta) Q,

    where P is the teacher's distribution and Q the student's. As in TRL, 0 means KL(P, Q), the forward divergence, and
    1 KL(Q, P), the reverse one, which are its limits divided by beta and by 1 - beta.
    """
    p, q = teacher.float().log_softmax(-1), student.float().log_softmax(-1)
    if beta == 0:
        return _kl(p, q)
    if beta == 1:
        return _kl(q, p)
    middle = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    return beta * _kl(p, middle) + (1 - beta) * _kl(q, middle)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(P, Q) of log-probabilities (positions, vocabulary)."""
    return (p.exp() * (p - q)).sum(-1)


class Teacher:
    """A model whose distribution at some positions is computed from what comes before its output head, a piece of the
    positions at a time: the logits of all of them may be more than the model itself."""

    def __init__(self, model: Any) -> None:
        """`model`: a `PreTrainedModel`, for inference."""
        self._model = model
        self._head: nn.Module = model.get_output_embeddings()
        self._config = model.config.get_text_config()

    def knows(self, inputs: Mapping[str, Any], positions: Tensor) -> Tensor:
        """(positions, hidden): what it thinks at `positions` (samples, tokens), without gradients.

        Raises UnsupportedModel where its logits are not its head's.
        """
        found: list[Tensor] = []

        def gather(module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
            found.append(given[0][positions])
            return (found[0][:1],)

        hook = self._head.register_forward_pre_hook(gather)
        try:
            with torch.no_grad():
                first = self._model(**inputs, use_cache=False).logits
        finally:
            hook.remove()
        if not torch.allclose(first.float(), self._logits(found[0][:1])):
            message = f"{type(self._model).__name__} changes its logits in a way of its own"
            raise UnsupportedModel(message, param="teacher_model")
        return found[0]

    def judge(self, logits: Tensor, known: Tensor, *, beta: float) -> Judged:
        """Of a student's `logits` (positions, vocabulary) and what `knows` said of the same positions: the divergences,
        and whether both find the same token the likeliest.

        Tokens that only one of the two has rows for, beyond those of the tokenizer, are left out.
        """
        theirs = self._logits(known)
        width = min(logits.shape[-1], theirs.shape[-1])
        mine, theirs = logits[:, :width], theirs[:, :width]
        return generalized_jsd(mine, theirs, beta), mine.argmax(-1) == theirs.argmax(-1), None

    def _logits(self, known: Tensor) -> Tensor:
        with torch.no_grad():
            return finished(self._head(known), self._config).float()
