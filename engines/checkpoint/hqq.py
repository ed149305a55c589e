"""Weights that HQQ has packed, as its layers and transformers 4 save them, and what they stand for (Badri and Shaji
2023, Half-Quadratic Quantization of Large Machine Learning Models).

A weight is `scale * (integer - zero)`, and a zero need not be whole. A layer's weights, one output after another, are
cut into rows of `group_size` that share scale and zero (`axis` 1), or dealt out to as many rows, and a column shares
them (`axis` 0). Beside a layer's tensors lie its settings, as tensors too, a text as the codes of its characters:

| tensor | |
|---|---|
| `W_q` | integers, several in one; those of each row are `1 / each` of all rows apart, the first in the highest bits |
| `scale`, `zero` | (rows, 1), or (1, columns) |
| `packing` | how many bits each integer has there, and of what type those are that hold several |
| `axis`, `group_size`, `shape` | how they were made; `shape` (outputs, inputs) |
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engines.checkpoint.integers import CENTRE, Integers, kernel_group

NEEDED = ("W_q", "scale", "zero", "shape", "packing", "axis", "group_size")
PARTS = (
    *NEEDED, "nbits", "view_as_float", "unpack_view_dtype", "compute_dtype", "channel_wise", "optimize", "round_zero",
    "quant_scale", "quant_zero", "offload_meta", "stores_quant_config", "encoded_state_dict",
)  # fmt: skip
"""What a layer is saved as; the first of them is there if any is."""
PACKINGS = {
    "8bit_u8": (torch.uint8, 8, 1),
    "4bit_u8": (torch.uint8, 4, 2),
    "3bit_32": (torch.int32, 3, 10),
    "2bit_u8": (torch.uint8, 2, 4),
    "1bit_u8": (torch.uint8, 1, 8),
}
"""Type, bits of an integer, and how many of these it holds."""


@dataclass(frozen=True, slots=True)
class UnpackedByHqq:
    """What was packed: integers (rows, columns) as they share scales and zeros, and the shape of the weight."""

    bits: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor
    shape: tuple[int, int]
    axis: int

    def weights(self) -> Tensor:
        """(inputs, outputs) float32."""
        weights = (self.codes.float() - self.zeros.float()) * self.scales.float()
        return weights.reshape(self.shape).T

    def integers(self) -> Integers | None:
        """As a kernel multiplies them; None where it cannot, as where those that share a scale are no neighbours."""
        (outputs, inputs), group = self.shape, self.codes.shape[1]
        size = kernel_group(group)
        if self.axis != 1 or self.scales.shape != (len(self.codes), 1) or inputs % group or size is None:
            return None
        bits = 4 if self.bits <= 4 else 8
        shift = 0 if bits == 4 else 128
        codes = self.codes.reshape(outputs, inputs) - shift
        scales, zeros = (each.float().view(outputs, -1) for each in (self.scales, self.zeros))
        offsets = (CENTRE[bits] + shift - zeros) * scales
        scales, offsets = (each.repeat_interleave(group // size, 1) for each in (scales, offsets))
        return Integers(bits, codes.to(torch.int8).contiguous(), scales.contiguous(), offsets=offsets.contiguous())


def unpack_hqq(parts: Mapping[str, Tensor | None]) -> UnpackedByHqq:
    """A layer of HQQ, its tensors by their names. Raises ValueError."""
    there = {name: tensor for name, tensor in parts.items() if tensor is not None}
    if missing := [name for name in NEEDED if name not in there]:
        raise ValueError(f"a layer of HQQ has no {missing[0]}")
    packed, scales, zeros = there["W_q"], there["scale"], there["zero"]
    form = "".join(map(chr, there["packing"].tolist()))
    if form not in PACKINGS:
        raise ValueError(f"integers of HQQ are unpacked from {', '.join(PACKINGS)}, not from {form[:20]!r}")
    kind, bits, each = PACKINGS[form]
    outputs, inputs = there["shape"].tolist()
    axis, group = int(there["axis"]), int(there["group_size"])
    codes = _integers(packed.view(kind) if packed.is_floating_point() else packed, bits, each)
    if bits == 3:  # with rows at the end that make them a multiple of ten
        codes = codes[: group if axis == 0 else outputs * inputs // group]
    if codes.numel() != outputs * inputs or scales.shape != zeros.shape:
        told = f"integers {tuple(codes.shape)}, scales {tuple(scales.shape)} and zeros {tuple(zeros.shape)}"
        raise ValueError(f"{told} do not belong to one layer of {outputs} outputs and {inputs} inputs")
    return UnpackedByHqq(bits, codes, scales, zeros, (outputs, inputs), axis)


def _integers(packed: Tensor, bits: int, each: int) -> Tensor:
    """(rows, columns) -> (rows * each, columns), the highest bits first."""
    places = range((each - 1) * bits, -1, -bits)
    return torch.cat([(packed >> place) & (2**bits - 1) for place in places])
