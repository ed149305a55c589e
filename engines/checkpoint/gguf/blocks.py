"""The quantised types of GGUF files as integers with scales and offsets, exactly as they are meant.

A row consists of blocks; a block of its scales, its integers in several parts, and what they are relative to. The
layouts are those of ggml (`ggml-common.h`), and `gguf.quants` says what they stand for.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from engines.checkpoint.integers import CENTRE, Integers

Parts = tuple[int, int, Tensor, Tensor, Tensor | None]
"""Bits that a kernel has for them; the middle of the integers; these (blocks, values), from 0; scales (blocks, groups)
float32; and what is added to the values of a group (blocks, groups) float32."""


def integers_from(kind: str, rows: Tensor) -> Integers:
    """`rows` (outputs, bytes of a row) uint8 of one of the types in `KINDS`."""
    size, read = KINDS[kind]
    bits, middle, codes, scales, offsets = read(rows.reshape(-1, size))
    count = len(rows)
    if offsets is not None:
        offsets = (offsets + middle * scales).view(count, -1).contiguous()
    codes = (codes.to(torch.int16) + (CENTRE[bits] - middle)).to(torch.int8).view(count, -1)
    return Integers(bits, codes.contiguous(), scales.view(count, -1).contiguous(), offsets=offsets)


def _halves(blocks: Tensor, at: int) -> Tensor:
    """(blocks, 1) float32 of the float16 there."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """(blocks, bytes) -> (blocks, 2 * bytes): all low ones first."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def _bits(packed: Tensor) -> Tensor:
    """(blocks, 4) -> (blocks, 32), the lowest first."""
    return (packed[..., None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)


def _q4_0(b: Tensor) -> Parts:
    return 4, 8, _nibbles(b[:, 2:]), _halves(b, 0), None


def _q4_1(b: Tensor) -> Parts:
    return 4, 8, _nibbles(b[:, 4:]), _halves(b, 0), _halves(b, 2)


def _q5_0(b: Tensor) -> Parts:
    return 8, 16, _nibbles(b[:, 6:]) | _bits(b[:, 2:6]) << 4, _halves(b, 0), None


def _q5_1(b: Tensor) -> Parts:
    return 8, 16, _nibbles(b[:, 8:]) | _bits(b[:, 4:8]) << 4, _halves(b, 0), _halves(b, 2)


def _q8_0(b: Tensor) -> Parts:
    return 8, 128, b[:, 2:] ^ 128, _halves(b, 0), None  # signed ones, counted from the least


def _pairs(packed: Tensor) -> Tensor:
    """(blocks, 64) of two bits -> (blocks, 256): 32 bytes at a time, the lowest bits of each first."""
    halves = packed.view(-1, 2, 1, 32)
    return (halves >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None] & 3).flatten(1)


def _q2_k(b: Tensor) -> Parts:
    scales = b[:, :16]
    return 4, 2, _pairs(b[:, 16:80]), _halves(b, 80) * (scales & 15), -_halves(b, 82) * (scales >> 4)


def _q3_k(b: Tensor) -> Parts:
    high = (b[:, None, :32] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1).flatten(1)
    low, top = b[:, 96:104], b[:, None, 104:108]
    top = (top >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None] & 3).flatten(1)
    scales = (_nibbles(low) | top << 4).float() - 32
    return 4, 4, _pairs(b[:, 32:96]) | high << 2, _halves(b, 108) * scales, None


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks, 12) -> scales and minima (blocks, 8)."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, third & 15 | first >> 6 << 4], 1)
    return scales.float(), torch.cat([second & 63, third >> 4 | second >> 6 << 4], 1).float()


def _k_nibbles(packed: Tensor) -> Tensor:
    """(blocks, 128) -> (blocks, 256): of 32 bytes all low ones, then all high ones."""
    return _nibbles(packed.view(-1, 4, 32)).flatten(1)


def _q4_k(b: Tensor) -> Parts:
    scales, least = _six_bits(b[:, 4:16])
    return 4, 8, _k_nibbles(b[:, 16:]), _halves(b, 0) * scales, -_halves(b, 2) * least


def _q5_k(b: Tensor) -> Parts:
    scales, least = _six_bits(b[:, 4:16])
    high = (b[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1).flatten(1)
    return 8, 16, _k_nibbles(b[:, 48:]) | high << 4, _halves(b, 0) * scales, -_halves(b, 2) * least


def _q6_k(b: Tensor) -> Parts:
    low = _nibbles(b[:, :128].view(-1, 2, 64)).flatten(1)
    scales = b[:, 192:208].contiguous().view(torch.int8).float()
    return 8, 32, low | _pairs(b[:, 128:192]) << 4, _halves(b, 208) * scales, None


KINDS: dict[str, tuple[int, Callable[[Tensor], Parts]]] = {
    "Q4_0": (18, _q4_0), "Q4_1": (20, _q4_1), "Q5_0": (22, _q5_0), "Q5_1": (24, _q5_1), "Q8_0": (34, _q8_0),
    "Q2_K": (84, _q2_k), "Q3_K": (110, _q3_k), "Q4_K": (144, _q4_k), "Q5_K": (176, _q5_k), "Q6_K": (210, _q6_k),
}  # fmt: skip
"""ggml's types that are kept as integers -> bytes of a block, and how it is read."""
