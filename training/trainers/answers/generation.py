"""Answers that are learned from together, and the batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.data.encode import IGNORED
from training.losses.log_probs import asked_of
from training.rollouts.types import Rollout
from training.trainers.batches.collate import Padded

FILE = "generation.safetensors"
"""In a checkpoint: answers of which more is to be learned."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Answers of one forward pass."""

    inputs: dict[str, Tensor]
    """`input_ids`, `attention_mask`, `position_ids`: (answers, tokens of the longest), padded on the right."""
    positions: Tensor
    """(answers, tokens) bool: the positions from which the tokens that are learned are predicted."""
    token_ids: Tensor
    """(positions,)"""
    rows: Tensor
    """(positions,): the answer that each is of."""
    advantages: Tensor
    """(answers,)"""
    old: Tensor | None
    """(positions,): log-probabilities before anything was learned of them; None: the policy still is what it was."""
    reference: Tensor | None
    """(positions,): log-probabilities under the reference model, where it is needed."""

    @property
    def answers(self) -> int:
        return len(self.advantages)


@dataclass(slots=True)
class Generation:
    """What is drawn and judged together; it may grow while it is learned from."""

    prompts: list[Sequence[int]] = field(default_factory=list)
    """One for each answer."""
    answers: list[Sequence[int]] = field(default_factory=list)
    learned: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """(answers,) bool: whether its tokens are learned."""
    advantages: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(answers,)"""
    tokens: float = 0.0
    """Tokens that are learned, in each process on average."""
    old: list[Tensor] = field(default_factory=list)
    """A tensor for each batch, where it is needed: see `Batch`."""
    reference: list[Tensor] = field(default_factory=list)

    def add(self, rollouts: Sequence[Rollout], *, without_cut: bool) -> None:
        """Take in answers, with advantages of 0. `without_cut`: nothing is learned of those that did not end by
        themselves."""
        self.prompts += [each.prompt_ids for each in rollouts]
        self.answers += [each.token_ids for each in rollouts]
        learned = torch.tensor([each.ended or not without_cut for each in rollouts])
        self.learned = torch.cat([self.learned, learned])
        self.advantages = torch.cat([self.advantages, torch.zeros(len(rollouts))])

    def learned_tokens(self, first: int) -> int:
        """Tokens that are learned of the answers from `first` on."""
        return sum(len(self.answers[at]) for at in range(first, len(self.answers)) if self.learned[at])

    def batch(self, number: int, size: int, pad_token_id: int, device: torch.device) -> Batch:
        """The `size` answers of one forward pass."""
        chosen = range(number * size, (number + 1) * size)
        samples = [self._sample(at) for at in chosen]
        inputs = {name: tensor.to(device) for name, tensor in Padded(pad_token_id)(samples).items()}
        positions, token_ids = asked_of(inputs.pop("labels"))
        old, reference = (
            kept[number].to(device) if number < len(kept) else None for kept in (self.old, self.reference)
        )
        advantages = self.advantages[chosen.start : chosen.stop].to(device)
        return Batch(inputs, positions, token_ids, positions.nonzero()[:, 0], advantages, old, reference)

    def _sample(self, at: int) -> dict[str, list[int]]:
        prompt, answer = list(self.prompts[at]), list(self.answers[at])
        labels = answer if self.learned[at] else [IGNORED] * len(answer)
        return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + labels}

    # ---- in a checkpoint

    def save(self, folder: Path) -> None:
        tensors = {"learned": self.learned, "advantages": self.advantages.cpu(), "tokens": torch.tensor([self.tokens])}
        for name, texts in (("prompts", self.prompts), ("answers", self.answers)):
            tensors[f"{name}.lengths"] = torch.tensor([len(text) for text in texts])
            tensors[name] = torch.tensor([token for text in texts for token in text], dtype=torch.long)
        for name, kept in (("old", self.old), ("reference", self.reference)):
            for number, each in enumerate(kept):
                tensors[f"{name}.{number}"] = each.cpu().contiguous()
        save_file(tensors, folder / FILE)

    @staticmethod
    def load(folder: Path) -> "Generation":
        tensors = load_file(folder / FILE)

        def texts(name: str) -> list[Sequence[int]]:
            return [part.tolist() for part in tensors[name].split(tensors[f"{name}.lengths"].tolist())]

        def kept(name: str) -> list[Tensor]:
            count = sum(each.startswith(f"{name}.") for each in tensors)
            return [tensors[f"{name}.{number}"] for number in range(count)]

        tokens, learned, advantages = float(tensors["tokens"]), tensors["learned"], tensors["advantages"]
        return Generation(
            texts("prompts"), texts("answers"), learned, advantages, tokens, kept("old"), kept("reference")
        )
