"""Samples to a batch: padded on one side, or packed, several to a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils.generic import is_flash_attention_requested

from training.data.encode import IGNORED


@dataclass(frozen=True, slots=True)
class Padded:
    pad_token_id: int
    side: Literal["left", "right"] = "right"

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `position_ids` and `labels`, (samples, tokens of the longest); also
        `loss_scale` where samples have it."""
        longest = max(len(sample["input_ids"]) for sample in samples)
        ids = [self._pad(list(sample["input_ids"]), longest, self.pad_token_id) for sample in samples]
        labels = [self._pad([IGNORED, *sample["labels"][1:]], longest, IGNORED) for sample in samples]
        mask = torch.tensor([self._pad([1] * len(sample["input_ids"]), longest, 0) for sample in samples])
        batch = {
            "input_ids": torch.tensor(ids),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
            "labels": torch.tensor(labels),
        }
        if "loss_scale" in samples[0]:
            batch["loss_scale"] = torch.tensor(
                [self._pad(list(sample["loss_scale"]), longest, 0.0) for sample in samples]
            )
        return batch

    def _pad(self, values: list[Any], length: int, value: Any) -> list[Any]:
        padding = [value] * (length - len(values))
        return values + padding if self.side == "right" else padding + values


@dataclass(frozen=True, slots=True)
class Paired:
    """Two answers to each prompt, as samples beside one another."""

    pad_token_id: int

    def __call__(self, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """What `Padded` makes, (pairs, 2, tokens of the longest): the chosen answer first, the answers as labels.
        Where rows have them, also `ref_log_probs` (pairs, 2)."""
        answers = [
            answer_of(pair["prompt_ids"], pair[name]) for pair in pairs for name in ("chosen_ids", "rejected_ids")
        ]
        padded = Padded(self.pad_token_id)(answers)
        batch = {name: tensor.unflatten(0, (len(pairs), 2)) for name, tensor in padded.items()}
        if "ref_log_probs" in pairs[0]:
            batch["ref_log_probs"] = torch.tensor([pair["ref_log_probs"] for pair in pairs])
        return batch


MISMATCHED = "mismatched_"
"""Before the names of tensors that hold prompts with the answers to other ones."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Answers, of which it is known whether they are good; each prompt also with the answer before it, and the first
    one with the last answer, as TRL pairs them."""

    pad_token_id: int
    max_length: int | None
    """Most tokens of a prompt with the answer to another one."""
    mismatched: bool = True

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """What `Padded` makes, (samples, tokens of the longest), and `good` (samples,) bool; the same of the
        mismatched answers, which a batch of one row has not."""
        prompts, answers = ([row[name] for row in rows] for name in ("prompt_ids", "completion_ids"))
        batch = self._padded(prompts, answers) | {"good": torch.tensor([bool(row["label"]) for row in rows])}
        if not self.mismatched or len(rows) == 1:
            return batch
        others = self._padded(prompts, [answers[-1], *answers[:-1]])
        return batch | {f"{MISMATCHED}{name}": tensor for name, tensor in others.items()}

    def _padded(self, prompts: Sequence[Any], answers: Sequence[Any]) -> dict[str, Tensor]:
        samples = [answer_of(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        cut = [{name: ids[: self.max_length] for name, ids in sample.items()} for sample in samples]
        return Padded(self.pad_token_id)(cut)


def answer_of(prompt: Sequence[int], answer: Sequence[int]) -> dict[str, list[int]]:
    """A sample of which the answer is learned."""
    return {"input_ids": [*prompt, *answer], "labels": [*[IGNORED] * len(prompt), *answer]}


@dataclass(frozen=True, slots=True)
class Packed:
    """No attention mask, but positions that begin again at 0 with each sample: transformers' attention then keeps the
    samples of a row apart. The rest of a row that is shorter than the longest is one more sample, of which nothing is
    learned. Nor does a sample learn to predict the first token of the next."""

    pad_token_id: int
    flash: bool = False
    """Whether FlashAttention runs: it is told where samples end, as it would find that out of a single row only."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`input_ids`, `position_ids` and `labels`, (rows, tokens of the longest), and `loss_scale` as above; where
        `flash`, also its arguments `cu_seq_lens_q` and `cu_seq_lens_k` (samples + 1), and `max_length_q` and
        `max_length_k`."""
        longest = max(len(row["input_ids"]) for row in rows)
        lengths = [[*row["seq_lengths"], longest - len(row["input_ids"])] for row in rows]
        batch: dict[str, Any] = {
            "input_ids": torch.tensor([_filled(row["input_ids"], longest, self.pad_token_id) for row in rows]),
            "position_ids": torch.tensor([[at for length in row for at in range(length)] for row in lengths]),
            "labels": torch.tensor([_filled(row["labels"], longest, IGNORED) for row in rows]),
        }
        batch["labels"][batch["position_ids"] == 0] = IGNORED
        if "loss_scale" in rows[0]:
            batch["loss_scale"] = torch.tensor([_filled(row["loss_scale"], longest, 0.0) for row in rows])
        return batch | (_ends([length for row in lengths for length in row if length]) if self.flash else {})


def runs_flash_attention(model: Any) -> bool:
    return bool(is_flash_attention_requested(model.config))


def _filled(values: Sequence[Any], length: int, value: Any) -> list[Any]:
    return [*values, *[value] * (length - len(values))]


def _ends(lengths: Sequence[int]) -> dict[str, Any]:
    """The samples of all rows, laid end to end, in the words of FlashAttention's arguments."""
    ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def as_they_are(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of what its trainer makes inputs of: its rows."""
    return {"rows": list(rows)}
