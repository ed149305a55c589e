"""KTO (Ethayarajh et al. 2024, arXiv:2402.01306): transformers' trainer with the loss of single answers that were good
or bad.

An answer's reward r is beta times what its log-probability has gained on the reference model's. The loss (section 4.1)
is w (1 - sigmoid(r - z)) of a good answer and w (1 - sigmoid(z - r)) of a bad one. z is beta times the divergence of
the model from its reference: the mean of what answers to other prompts have gained, at least 0. So an answer is to gain
more, or less, than any answer does. It is estimated in each batch, over all processes, where each prompt also gets the
answer before its own. Without z, the loss is the unpaired form of APO-zero (D'Oosterlinck et al. 2024,
arXiv:2408.06266).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engines.errors import UnsupportedModel
from training.data.prepare import longest
from training.losses.log_probs import asked_of, token_log_probs
from training.params.rlhf import RlhfParams
from training.trainers.batch_loss import BatchLossTrainer, Mode, mode_of
from training.trainers.batches.averages import Averages
from training.trainers.batches.collate import MISMATCHED, Judged
from training.trainers.batches.columns import Columns
from training.trainers.job.job import Training
from training.trainers.pairs import spread
from training.trainers.reference import reference_of, without_dropout
from training.trainers.supervised import aux_loss_coef

BALANCED = (1.0, 4 / 3)
"""Weight of all good answers for each of all bad ones that suits the loss, in TRL's words of section 4.2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KtoLoss:
    beta: float
    desirable: float
    """Weight of good answers."""
    undesirable: float
    """Weight of bad answers."""
    diverges: bool
    """Whether the divergence from the reference is what a reward is to exceed, not 0."""

    def of(self, gained: Tensor, good: Tensor, divergence: Tensor) -> Tensor:
        """(samples,) each: `gained` on the reference, whether an answer is `good`; `divergence` is a scalar."""
        sign = torch.where(good, 1.0, -1.0)
        weight = torch.where(good, self.desirable, self.undesirable)
        return weight * (1 - torch.sigmoid(sign * self.beta * (gained - divergence)))


@dataclass(frozen=True, slots=True)
class Answers(Columns):
    """What is said of the answers of a batch, (samples,) each."""

    log_probs: Tensor
    reference: Tensor
    good: Tensor
    """1 for a good answer, 0 for a bad one."""
    tokens: Tensor
    correct: Tensor
    """Tokens that were the likeliest."""
    entropy: Tensor


class KtoTrainer(BatchLossTrainer):
    """Takes rows of `prompt_ids`, `completion_ids` and `label`, true of a good answer."""

    def __init__(self, job: Training[RlhfParams], loss: KtoLoss) -> None:
        """Raises InvalidRequest, UnsupportedModel."""
        without_dropout(job.tuned.model)
        changes = {}
        if job.arguments["per_device_eval_batch_size"] == 1:  # of one answer alone nothing could be estimated
            changes["per_device_eval_batch_size"] = job.arguments["per_device_train_batch_size"]
        collator = Judged(job.tokenizer.pad_token_id, longest(job.params, job.tokenizer), mismatched=loss.diverges)
        super().__init__(job, data_collator=collator, **changes)
        self._loss = loss
        self._reference = reference_of(job, self.args.device)
        self._aux_loss_coef = aux_loss_coef(job)
        self._seen: dict[Mode, Averages] = {"train": Averages(), "eval": Averages()}
        if not job.params.streaming and (note := imbalance(list(job.data.train["label"]), loss)):
            job.report.message(note, level="warn")

    def batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        divergence = self._divergence(model, inputs)
        said, aux_loss = self._answers(model, inputs)
        answers = Answers.of(said)
        loss = self._loss.of(answers.log_probs - answers.reference, answers.good > 0, divergence).mean()
        if aux_loss is not None:
            loss = loss + self._aux_loss_coef * aux_loss
        gather = self.accelerator.gather if model.training else self.accelerator.gather_for_metrics
        self._tell(mode_of(model), gather(said.detach()), divergence)
        return loss

    def measured(self, mode: Mode) -> dict[str, float]:
        return with_margins(self._seen[mode].taken())

    def _divergence(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Scalar: what the mismatched answers of all processes have gained on average, at least 0. Takes them out of
        `inputs`."""
        others = {name.removeprefix(MISMATCHED): inputs.pop(name) for name in [*inputs] if name.startswith(MISMATCHED)}
        gained = torch.zeros(2, device=self.args.device)  # of all answers, their number
        if others:
            positions, wanted = asked_of(others.pop("labels"))
            with torch.no_grad():
                now = token_log_probs(model, others, positions, wanted).log_probs
            gained[0] = (now - self._reference.log_probs(others, positions, wanted)).sum()
            gained[1] = len(positions)
        if self._loss.diverges:
            gained = self.accelerator.gather(gained).view(-1, 2).sum(0)
        return (gained[0] / gained[1].clamp(min=1)).clamp(min=0)

    def _answers(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """`Answers`, stacked, of the batch of this process; and the auxiliary loss, where there is one to add."""
        good = inputs.pop("good")
        positions, wanted = asked_of(inputs.pop("labels"))
        reference = self._reference.log_probs(inputs, positions, wanted)
        router = {"output_router_logits": True} if self._aux_loss_coef else {}
        said = token_log_probs(model, inputs | router, positions, wanted, entropy=True)
        if self._aux_loss_coef and said.aux_loss is None:
            raise UnsupportedModel("the model computes no such loss: set it to 0", param="router_aux_loss_coef")
        assert said.entropy is not None
        log_probs, reference, correct, entropy = (
            spread(each.float(), positions).sum(-1) for each in (said.log_probs, reference, said.correct, said.entropy)
        )
        tokens = positions.sum(-1).float()
        return Answers(log_probs, reference, good.float(), tokens, correct, entropy).stacked(), said.aux_loss

    def _tell(self, mode: Mode, said: Tensor, divergence: Tensor) -> None:
        """Keep what is to be told of a batch, that of all processes."""
        answers = Answers.of(said)
        rewards = self._loss.beta * (answers.log_probs - answers.reference)
        seen = {}
        for name, which in (("chosen", answers.good), ("rejected", 1 - answers.good)):
            seen[f"rewards/{name}"] = ((rewards * which).sum(), which.sum())
            seen[f"logps/{name}"] = ((answers.log_probs * which).sum(), which.sum())
        seen["token_accuracy"] = ((answers.correct * answers.good).sum(), (answers.tokens * answers.good).sum())
        seen["entropy"] = (answers.entropy.sum(), answers.tokens.sum())
        if self._loss.diverges:
            seen["kl"] = (divergence, torch.ones_like(divergence))
        self._seen[mode].add(seen)


def with_margins(means: dict[str, float]) -> dict[str, float]:
    """How much better good answers are rewarded than bad ones, where there were both."""
    chosen, rejected = means.get("rewards/chosen"), means.get("rewards/rejected")
    return means if chosen is None or rejected is None else means | {"rewards/margins": chosen - rejected}


def imbalance(labels: Sequence[bool], loss: KtoLoss) -> str | None:
    """What the user should know of a set in which the answers of one kind outweigh those of the other."""
    good = sum(labels)
    bad = len(labels) - good
    if not good or not bad:
        return f"All {len(labels)} answers are {'good' if good else 'bad'} ones: nothing says what to prefer to what."
    weight = loss.desirable * good / (loss.undesirable * bad) if loss.undesirable else None
    lowest, highest = BALANCED
    if weight is not None and lowest - 0.01 <= weight <= highest + 0.01:
        return None
    desirable = [loss.undesirable * bad / good * bound for bound in BALANCED]
    undesirable = [loss.desirable * good / bad / bound for bound in reversed(BALANCED)]
    return (
        f"{good} answers are good and {bad} are bad ones, and with these weights one kind outweighs the other: set "
        f"desirable_weight to {desirable[0]:.2f} to {desirable[1]:.2f}, or undesirable_weight to "
        f"{undesirable[0]:.2f} to {undesirable[1]:.2f}."
    )
