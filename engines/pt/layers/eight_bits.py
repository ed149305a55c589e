"""Keys and values in 8 bits, with a scale for each token and head, as vLLM's `per_token_head` types have them.

Symmetric: the largest value of a head becomes the largest number that 8 bits have, the others the nearest
numbers, ties to even. `kernels/eight_bits.h` rounds in the same way, to the last bit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engines.errors import UnsupportedModel
from engines.params.engine import unfit_cache_for_pt

SMALLEST = torch.finfo(torch.float32).tiny
"""The least scale: below it numbers have fewer digits."""


@dataclass(frozen=True, slots=True)
class EightBits:
    name: str
    """As `kv_cache_dtype` has it."""
    dtype: torch.dtype
    most: float
    """The largest number."""
    number: int
    """The kernels' for it."""

    def round(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(..., dim) to as many bytes and their scales (...) float32. What is no number, or has no end, leaves none in
        its head."""
        wide = states.float()
        scales = (wide.abs().amax(-1) / self.most).clamp_min(SMALLEST)
        scaled = wide / scales[..., None]
        if self.dtype is torch.int8:
            scaled = scaled.round()
        return scaled.to(self.dtype).view(torch.uint8), scales

    def values(self, data: Tensor, scales: Tensor) -> Tensor:
        """What the bytes (..., dim) of the scales (...) stand for, float32."""
        return data.view(self.dtype).float() * scales[..., None]


KINDS = {
    kind.name: kind
    for kind in (
        EightBits("int8_per_token_head", torch.int8, 127.0, 1),
        EightBits("fp8_per_token_head", torch.float8_e4m3fn, 448.0, 2),
    )
}


def kept_as(kv_cache_dtype: str) -> EightBits | None:
    """None: as they are. Raises UnsupportedModel."""
    reason = unfit_cache_for_pt(kv_cache_dtype)
    if reason is not None:
        raise UnsupportedModel(reason, param="kv_cache_dtype")
    return KINDS.get(kv_cache_dtype)


def number_of(kind: EightBits | None) -> int:
    return 0 if kind is None else kind.number
