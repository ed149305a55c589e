"""What requests do to their logits before a token is chosen: penalties, bias, bans, allowed tokens, grammars."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engines.sampler.row import SamplerRow

BLOCK = 64
"""Rows are padded to whole blocks of neighbours: reducing these first is several times faster than reducing a row."""


def edited(logits: Tensor, rows: Sequence[SamplerRow], masks: Tensor | None) -> Tensor:
    """In float32, padded to whole blocks with -inf, with all but the filters applied.

    A copy where that changes anything.
    """
    assert len(rows) == len(logits)
    changed = masks is not None or any(row.edits for row in rows)
    scores = padded(logits.to(torch.float32, copy=changed))
    if not changed:
        return scores
    _apply_penalties(scores, rows)
    _apply_bias(scores, rows)
    _apply_bans(scores, rows)
    _apply_masks(scores, rows, masks)
    return scores


def padded(scores: Tensor) -> Tensor:
    padding = -scores.shape[1] % BLOCK
    return functional.pad(scores, (0, padding), value=-torch.inf) if padding else scores


def _apply_penalties(scores: Tensor, rows: Sequence[SamplerRow]) -> None:
    positions, factors, subtracted = [], [], []
    for i, row in enumerate(rows):
        if row.penalties is not None:
            positions.append(row.penalties.ids + i * scores.shape[1])
            factors.append(np.full(len(positions[-1]), row.sampling.repetition_penalty, dtype=np.float32))
            subtracted.append(row.penalties.subtracted())
    if not positions:
        return
    at, factor, minus = (_joined(arrays, scores.device) for arrays in (positions, factors, subtracted))
    old = scores.view(-1)[at]
    scores.view(-1)[at] = torch.where(old < 0, old * factor, old / factor) - minus


def _apply_bias(scores: Tensor, rows: Sequence[SamplerRow]) -> None:
    biased = [(i, row) for i, row in enumerate(rows) if len(row.bias_ids)]
    if biased:
        at = _joined([row.bias_ids + i * scores.shape[1] for i, row in biased], scores.device)
        scores.view(-1)[at] += _joined([row.bias_values for _, row in biased], scores.device)


def _apply_bans(scores: Tensor, rows: Sequence[SamplerRow]) -> None:
    banned = [i * scores.shape[1] + token_id for i, row in enumerate(rows) for token_id in row.banned()]
    if banned:
        scores.view(-1).index_fill_(0, torch.tensor(banned, device=scores.device), -torch.inf)


def _apply_masks(scores: Tensor, rows: Sequence[SamplerRow], masks: Tensor | None) -> None:
    words = _restrictions(rows, masks, scores.shape[1])
    if words is None:
        return
    restricted = (words != -1).any(1).nonzero()[:, 0]
    padded = functional.pad(words[restricted], (0, scores.shape[1] // 32 - words.shape[1]))
    scores[restricted.to(scores.device)] += _as_addend(padded.to(scores.device))


def _restrictions(rows: Sequence[SamplerRow], masks: Tensor | None, width: int) -> Tensor | None:
    """Grammar masks and allowed tokens in one, on the device of the masks."""
    allowed = [(i, row.allowed_words) for i, row in enumerate(rows) if row.allowed_words is not None]
    if not allowed:
        return masks
    words = torch.full((len(rows), len(allowed[0][1])), -1, dtype=torch.int32) if masks is None else masks.clone()
    for i, own in allowed:
        words[i] &= own.to(words.device)
    return words


def _as_addend(words: Tensor) -> Tensor:
    """(rows, words) int32 -> (rows, 32 * words) float32: 0 for a set bit, else -inf. Adding beats masked filling 7x."""
    bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=words.device)
    clear = (torch.arange(256, dtype=torch.uint8, device=words.device)[:, None] & bits) == 0
    of_byte = torch.zeros(256, 8, device=words.device).masked_fill_(clear, -torch.inf)
    return of_byte.index_select(0, words.view(torch.uint8).view(-1).int()).view(len(words), -1)


def _joined(arrays: list[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(device)
