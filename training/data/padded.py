"""Rows of token ids as one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, (rows, tokens of the longest), padded on the right."""
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[*row, *[pad_token_id] * (longest - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }
