"""Training by pairs of answers, of which one is to become likelier than the other: transformers' trainer with losses
of ours over what the model says of the answers.

The loss of a batch is that of the pairs of all processes together, each of which learns from its own: what one process
would compute of a batch so large.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engines.errors import UnsupportedModel
from training.data.encode import IGNORED
from training.losses.log_probs import asked_of, token_log_probs
from training.losses.pairs import LOSSES, Pairs, Weights
from training.params.rlhf import RlhfParams
from training.trainers.batch_loss import BatchLossTrainer, Mode
from training.trainers.batches.averages import Averages
from training.trainers.batches.collate import Paired
from training.trainers.batches.columns import Columns
from training.trainers.job.job import Training
from training.trainers.precomputed import COLUMN, with_ref_log_probs
from training.trainers.reference import Reference, reference_of, without_dropout
from training.trainers.supervised import aux_loss_coef


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLoss:
    """What is learned from pairs."""

    name: str
    """In LOSSES."""
    weights: Weights
    compares: bool = True
    """Whether there is a reference model."""
    answer_weight: float = 0.0
    """Weight of the chosen answers' own loss, the cross entropy of their tokens, which is added."""
    with_prompts: bool = False
    """Whether that loss is of the prompts' tokens too."""
    of_tokens: bool = False
    """Whether the reward that is told of is that of a token, not of an answer."""


@dataclass(frozen=True, slots=True)
class Answers(Columns):
    """What is said of the answers of a batch, (pairs, 2) each."""

    log_probs: Tensor
    reference: Tensor
    tokens: Tensor
    learned: Tensor
    """Log-probabilities of all tokens that an answer's own loss is of."""
    learned_tokens: Tensor
    correct: Tensor
    """Tokens of the answer that were the likeliest."""
    entropy: Tensor


class PairsTrainer(BatchLossTrainer):
    """Takes rows of `prompt_ids`, `chosen_ids`, `rejected_ids`."""

    def __init__(self, job: Training[RlhfParams], loss: PairLoss) -> None:
        """Raises InvalidRequest, UnsupportedModel."""
        if loss.compares:
            without_dropout(job.tuned.model)
        super().__init__(job, data_collator=Paired(job.tokenizer.pad_token_id))
        self._loss = loss
        self._aux_loss_coef = aux_loss_coef(job)
        self._seen: dict[Mode, Averages] = {"train": Averages(), "eval": Averages()}
        self._reference: Reference | None = None
        if loss.compares and job.params.precompute_ref_log_probs:
            self._precompute(reference_of(job, self.args.device, lasting=False))
        elif loss.compares:
            self._reference = reference_of(job, self.args.device)

    def batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        said, aux_loss = self._answers(model, inputs)
        if model.training:
            said = self._of_all_processes(said)
        loss = self._pair_loss(Answers.of(said))
        if model.training:
            self._tell("train", said)
            # Gradients are averaged over the processes, of which each has those of its own pairs.
            loss = loss + (self.accelerator.num_processes - 1) * (loss - loss.detach())
        else:
            self._tell("eval", self.accelerator.gather_for_metrics(said))
        return loss if aux_loss is None else loss + self._aux_loss_coef * aux_loss

    def measured(self, mode: Mode) -> dict[str, float]:
        return self._seen[mode].taken()

    def _precompute(self, reference: Reference) -> None:
        def judge(rows: Sequence[Any]) -> Tensor:
            batch = self._prepare_inputs(self.data_collator(rows))
            answers = asked_of(batch.pop("labels").flatten(0, 1))
            with self.compute_loss_context_manager():
                return _summed(reference, _flat(batch), *answers).view(-1, 2)

        sets = {"train": self.train_dataset, "evaluation": self.eval_dataset}
        given = {name: rows for name, rows in sets.items() if rows is not None}
        found = with_ref_log_probs(self, reference, judge, given, answers=2)
        self.train_dataset, self.eval_dataset = found["train"], found.get("evaluation")

    def _answers(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """`Answers`, stacked, of the batch of this process; and the auxiliary loss, where there is one to add."""
        labels, known = inputs.pop("labels"), inputs.pop(COLUMN, None)
        count = len(labels)
        answers, asked = (asked_of(each.flatten(0, 1)) for each in (labels, self._learned(labels, inputs)))
        flat = _flat(inputs)
        if self._reference is not None:
            known = _summed(self._reference, flat, *answers)
        router = {"output_router_logits": True} if self._aux_loss_coef else {}
        said = token_log_probs(model, flat | router, *asked, entropy=True)
        if self._aux_loss_coef and said.aux_loss is None:
            raise UnsupportedModel("the model computes no such loss: set it to 0", param="router_aux_loss_coef")
        assert said.entropy is not None
        in_answer, learned = answers[0], asked[0]
        log_probs = spread(said.log_probs, learned)
        columns = Answers(
            (log_probs * in_answer).sum(-1),
            torch.zeros_like(in_answer[:, 0], dtype=torch.float32) if known is None else known.flatten(),
            in_answer.sum(-1).clamp(min=1).float(),
            log_probs.sum(-1),
            learned.sum(-1).float(),
            (spread(said.correct.float(), learned) * in_answer).sum(-1),
            (spread(said.entropy, learned) * in_answer).sum(-1),
        )
        return columns.stacked().unflatten(0, (count, 2)), said.aux_loss

    def _learned(self, labels: Tensor, inputs: dict[str, Any]) -> Tensor:
        """`labels` (pairs, 2, tokens) of all tokens that the model is asked about."""
        if not self._loss.with_prompts:
            return labels
        learned = labels.clone()
        learned[:, 0] = inputs["input_ids"][:, 0].masked_fill(inputs["attention_mask"][:, 0] == 0, IGNORED)
        return learned

    def _of_all_processes(self, said: Tensor) -> Tensor:
        """`said` (pairs, ...) of all processes, of which that of this one carries gradients."""
        if self.accelerator.num_processes == 1:
            return said
        everything = self.accelerator.gather(said.detach())
        start = self.accelerator.process_index * len(said)
        return torch.cat([everything[:start], said, everything[start + len(said) :]])

    def _pair_loss(self, answers: Answers) -> Tensor:
        pairs = Pairs(answers.log_probs, answers.reference, answers.tokens)
        loss = LOSSES[self._loss.name](pairs, self._loss.weights).mean()
        if self._loss.answer_weight:
            own = -answers.learned[:, 0].sum() / answers.learned_tokens[:, 0].sum().clamp(min=1)
            loss = loss + self._loss.answer_weight * own
        return loss

    def _tell(self, mode: Mode, said: Tensor) -> None:
        """Keep what is to be told of a batch, that of all processes."""
        answers = Answers.of(said.detach())
        rewards = self._loss.weights.beta * (answers.log_probs - answers.reference)
        if self._loss.of_tokens:
            rewards = rewards / answers.tokens
        chosen, rejected = rewards.unbind(-1)
        values = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "logps/chosen": answers.log_probs[:, 0],
            "logps/rejected": answers.log_probs[:, 1],
        }
        count = torch.tensor(float(len(said)), device=said.device)
        seen = {name: (value.sum(), count) for name, value in values.items()}
        seen["token_accuracy"] = (answers.correct[:, 0].sum(), answers.tokens[:, 0].sum())
        seen["entropy"] = (answers.entropy.sum(), answers.tokens.sum())
        if self._loss.answer_weight:
            seen["nll_loss"] = (-answers.learned[:, 0].sum(), answers.learned_tokens[:, 0].sum())
        self._seen[mode].add(seen)


def _flat(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(pairs, 2, ...) -> (samples, ...)"""
    return {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}


def _summed(reference: Reference, inputs: dict[str, Tensor], positions: Tensor, wanted: Tensor) -> Tensor:
    """(samples,): what the reference says of the tokens asked about, summed."""
    return spread(reference.log_probs(inputs, positions, wanted), positions).sum(-1)


def spread(values: Tensor, positions: Tensor) -> Tensor:
    """`values` (positions,) at their `positions` (samples, tokens) bool, 0 elsewhere."""
    return torch.zeros_like(positions, dtype=values.dtype).masked_scatter(positions, values)
