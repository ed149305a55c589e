"""Samples to a batch: padded on one side, or, where they are packed, one after another in one long row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from training.data.encode import IGNORED


@dataclass(frozen=True, slots=True)
class Padded:
    pad_token_id: int
    side: Literal["left", "right"] = "right"

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `position_ids` and `labels`, (samples, tokens of the longest)."""
        longest = max(len(sample["input_ids"]) for sample in samples)
        ids = [self._pad(list(sample["input_ids"]), longest, self.pad_token_id) for sample in samples]
        labels = [self._pad([IGNORED, *sample["labels"][1:]], longest, IGNORED) for sample in samples]
        mask = torch.tensor([self._pad([1] * len(sample["input_ids"]), longest, 0) for sample in samples])
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
            "labels": torch.tensor(labels),
        }

    def _pad(self, values: list[int], length: int, value: int) -> list[int]:
        padding = [value] * (length - len(values))
        return values + padding if self.side == "right" else padding + values


@dataclass(frozen=True, slots=True)
class Packed:
    """No attention mask, but positions that begin again at 0 with each sample: transformers' attention then keeps the
    samples apart. Nor does a sample learn to predict the first token of the next."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`input_ids`, `position_ids` and `labels`, (1, tokens of all)."""
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        for row in rows:
            start = 0
            for length in row["seq_lengths"]:
                ids += row["input_ids"][start : start + length]
                labels += [IGNORED, *row["labels"][start + 1 : start + length]]
                positions += range(length)
                start += length
        return {
            "input_ids": torch.tensor([ids]),
            "position_ids": torch.tensor([positions]),
            "labels": torch.tensor([labels]),
        }
