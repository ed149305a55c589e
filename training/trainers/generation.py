"""Answers that are learned from together, and the batches of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.data.encode import IGNORED
from training.losses.log_probs import asked_of
from training.rollouts.types import Rollout
from training.trainers.collate import Padded

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
    """What was drawn and judged at one time."""

    prompts: Sequence[Sequence[int]]
    """One for each answer."""
    answers: Sequence[Sequence[int]]
    learned: Tensor
    """(answers,) bool: whether its tokens are learned."""
    advantages: Tensor
    """(answers,)"""
    tokens: float
    """Tokens that are learned, in each process on average."""
    old: list[Tensor] | None = None
    """A tensor for each batch: see `Batch`."""
    reference: list[Tensor] | None = None

    @staticmethod
    def of(rollouts: Sequence[Rollout], *, without_cut: bool) -> "Generation":
        """`without_cut`: nothing is learned of answers that did not end by themselves."""
        learned = torch.tensor([each.ended or not without_cut for each in rollouts])
        tokens = sum(len(each.token_ids) for each, is_learned in zip(rollouts, learned, strict=True) if is_learned)
        prompts, answers = [each.prompt_ids for each in rollouts], [each.token_ids for each in rollouts]
        return Generation(prompts, answers, learned, torch.zeros(len(rollouts)), float(tokens))

    def batches(self, count: int, pad_token_id: int, device: torch.device) -> Iterator[Batch]:
        return (self.batch(number, len(self.answers) // count, pad_token_id, device) for number in range(count))

    def batch(self, number: int, size: int, pad_token_id: int, device: torch.device) -> Batch:
        """The `size` answers of one forward pass."""
        chosen = range(number * size, (number + 1) * size)
        samples = [self._sample(at) for at in chosen]
        inputs = {name: tensor.to(device) for name, tensor in Padded(pad_token_id)(samples).items()}
        positions, token_ids = asked_of(inputs.pop("labels"))
        old, reference = ((kept[number].to(device) if kept else None) for kept in (self.old, self.reference))
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
            for number, each in enumerate(kept or ()):
                tensors[f"{name}.{number}"] = each.cpu().contiguous()
        save_file(tensors, folder / FILE)

    @staticmethod
    def load(folder: Path) -> "Generation":
        tensors = load_file(folder / FILE)

        def texts(name: str) -> list[list[int]]:
            return [part.tolist() for part in tensors[name].split(tensors[f"{name}.lengths"].tolist())]

        def kept(name: str) -> list[Tensor] | None:
            count = sum(each.startswith(f"{name}.") for each in tensors)
            return [tensors[f"{name}.{number}"] for number in range(count)] or None

        tokens, learned, advantages = float(tensors["tokens"]), tensors["learned"], tensors["advantages"]
        return Generation(
            texts("prompts"), texts("answers"), learned, advantages, tokens, kept("old"), kept("reference")
        )
