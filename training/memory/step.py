"""The part of a step that takes most memory: forward and backward pass of its largest batch, of what has no memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from engines.params.model import TaskType
from training.losses.log_probs import token_log_probs
from training.memory.peak import Peak
from training.memory.weightless import faked
from training.trainers.weights.narrow import NarrowGradients
from training.trainers.weights.tied import tied


@dataclass(frozen=True, slots=True)
class Batch:
    texts: int
    tokens: int
    """Of each, with what it is padded with."""
    learned: int
    """Tokens that are learned of all of them."""


@dataclass(frozen=True, slots=True)
class Learner:
    """A model on "meta" that learns in a step. Several of them learn from one loss."""

    model: Any
    task_type: TaskType = "causal_lm"
    entropy: bool = False
    """Whether what is told of a step has the entropy of the answers in it."""
    at_once: bool = False
    """Whether each weight is changed as soon as its gradient is there, which then goes."""
    in_place: bool = False
    """Whether the gradient of embeddings that are the output head, too, is that of the head, plus a few rows."""
    narrow: bool = False
    """Whether gradients of products in half precision are kept so."""


def peak_of_step(learners: Sequence[Learner], batch: Batch, *, autocast: torch.dtype | None, accumulates: bool) -> Peak:
    """What a step takes: `weights`, `gradients`, `activations`, `logits`.

    `accumulates`: whether gradients are there already when the pass begins.
    """
    peak = Peak(learners[0].model.config.get_text_config().vocab_size)
    with FakeTensorMode(), torch.random.fork_rng():
        for learner in learners:
            faked(learner.model)
            if learner.in_place and (embeddings := tied(learner.model)) is not None:
                embeddings.register_forward_hook(_without_rows)
            if learner.narrow:
                NarrowGradients(learner.model)
            peak.hold(learner.model, at_once=learner.at_once)
        with peak:
            for _ in range(1 + accumulates):
                pass_through(learners, batch, autocast)
    return peak


def pass_through(learners: Sequence[Learner], batch: Batch, autocast: torch.dtype | None) -> None:
    """Forward and backward."""
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None, cache_enabled=False):
        loss = torch.stack([_loss(learner, batch) for learner in learners]).sum()
    loss.backward()


def _without_rows(module: Any, inputs: Any, found: Tensor) -> Tensor:
    return found.detach().requires_grad_()


def _loss(learner: Learner, batch: Batch) -> Tensor:
    ids = torch.zeros(batch.texts, batch.tokens, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.zeros_like(ids)}
    if learner.task_type == "seq_cls":
        said: Tensor = learner.model(**inputs, use_cache=False).logits
        return said.float().sum()
    wanted = torch.zeros(max(1, batch.learned), dtype=torch.long)
    places: Any = (wanted, wanted)  # as a mask they would say how many they are by their values only
    return token_log_probs(learner.model, inputs, places, wanted, entropy=learner.entropy).log_probs.sum()
