"""Shifted sparse attention (LongLoRA, Chen et al. 2023, arXiv:2309.12307, section 3.2): in training, a token sees those
before it within its group of a quarter of the sequence; for half of the heads groups begin half a group later, so that
what is known goes from group to group. Elsewhere all is seen, as in any model.

Two things are better defined than in the authors' code. Half a group that a shift leaves over at either end is a group
by itself: rolled to the other end, the first tokens would see the last. And padding is never seen, wherever it is.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "shifted_sparse"
"""The attention implementation, for transformers' `set_attn_implementation`."""
GROUPS = 4


def register() -> None:
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of a layer, as transformers asks for it.

    `query`: (batch, heads, tokens, size of a head); `key`, `value`: the same with fewer heads. `attention_mask`: True
    for what is seen, (batch, 1, tokens, tokens); None: all that came before. Returns (batch, tokens, heads, size of a
    head).
    """
    tokens = query.shape[2]
    if not module.training or key.shape[2] != tokens:
        plain = {"dropout": dropout, "scaling": scaling, **others}
        came: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **plain)
        return came
    repeats = query.shape[1] // key.shape[1]
    parts = torch.stack([query, repeat_kv(key, repeats), repeat_kv(value, repeats)])
    visible = None if attention_mask is None else attention_mask.diagonal(dim1=-2, dim2=-1)[:, 0]  # not padding
    half = max(1, -(-tokens // (2 * GROUPS)))
    heads = query.shape[1] // 2
    settings = {"dropout_p": dropout, "scale": scaling}
    still = _within_groups(parts[:, :, :heads], visible, 2 * half, settings)
    first = _within_groups(parts[:, :, heads:, :half], _some(visible, slice(half)), half, settings)
    rest = _within_groups(parts[:, :, heads:, half:], _some(visible, slice(half, None)), 2 * half, settings)
    shifted = torch.cat([first, rest], dim=2)
    return torch.cat([still, shifted], dim=1).transpose(1, 2).contiguous(), None


def _some(visible: Tensor | None, tokens: slice) -> Tensor | None:
    return None if visible is None else visible[:, tokens]


def _within_groups(parts: Tensor, visible: Tensor | None, size: int, settings: dict[str, Any]) -> Tensor:
    """Causal attention within groups of `size` tokens.

    `parts`: (3, batch, heads, tokens, size of a head), queries, keys and values; `visible`: (batch, tokens). Returns
    (batch, heads, tokens, size of a head).
    """
    _, batch, _, tokens, _ = parts.shape
    if not tokens:
        return parts[0]
    more = -tokens % size  # behind the last token, where no other sees it
    grouped = pad(parts, (0, 0, 0, more)).unflatten(3, (-1, size)).transpose(2, 3).flatten(1, 2)
    mask = None
    if visible is not None:
        keys = pad(visible, (0, more)).unflatten(1, (-1, size)).flatten(0, 1)[:, None, None]
        before = torch.ones(size, size, dtype=torch.bool, device=parts.device).tril()
        itself = torch.eye(size, dtype=torch.bool, device=parts.device)  # else padding would see nothing, a NaN
        mask = keys & before | itself
    query, key, value = grouped
    came = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, **settings)
    return came.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)[:, :, :tokens]
