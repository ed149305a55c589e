"""Weights that GPTQ and AWQ have packed, several integers in each number of 32 bits, and what they stand for.

A weight is `scale * (integer - zero)`. Inputs of a layer share scale and zero in groups, each output has its own:

| tensor | shape | packed along |
|---|---|---|
| `qweight` of GPTQ | (inputs * bits / 32, outputs) | inputs |
| `qweight` of AWQ | (inputs, outputs / 8) | outputs, in `AWQ_ORDER` |
| `qzeros` | (groups, outputs * bits / 32) | outputs, those of AWQ in `AWQ_ORDER` |
| `scales` | (groups, outputs) | |
| `g_idx` of GPTQ | (inputs,): the group of each input | |

GPTQ: Frantar et al. 2022, arXiv:2210.17323. AWQ: Lin et al. 2023, arXiv:2306.00978.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engines.checkpoint.integers import Integers, integers
from engines.errors import UnsupportedModel

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a number AWQ keeps each of eight outputs, lowest bits first."""
FORMATS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",), "hqq": ("hqq",)}
"""Layouts that are known, by method; the first one is meant where config.json names none."""


def layout_of(told: dict[str, Any]) -> str:
    """Which of `FORMATS` `quantization_config` of a config.json tells. Raises UnsupportedModel for any other."""
    method = told["quant_method"]
    names = ("version", "checkpoint_format", "format") if method == "awq" else ("checkpoint_format", "format")
    found = next((str(told[name]).lower() for name in names if told.get(name)), FORMATS[method][0])
    if told.get("is_marlin_format"):
        found = "marlin"
    if told.get("backend") == "llm-awq":  # which has a layout of its own
        found = "llm-awq"
    if found not in FORMATS[method]:
        known = " and ".join(FORMATS[method])
        raise UnsupportedModel(f"weights of {method} are unpacked from {known}, not from {found}", param="model")
    return found


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What was packed: integers (inputs, outputs), zeros and scales (groups, outputs), and each input's group."""

    bits: int
    codes: Tensor
    zeros: Tensor
    scales: Tensor
    groups: Tensor

    def __post_init__(self) -> None:
        if self.zeros.shape != self.scales.shape or self.codes.shape != (len(self.groups), self.scales.shape[1]):
            each = f"integers {tuple(self.codes.shape)}, zeros {tuple(self.zeros.shape)}"
            raise ValueError(f"{each} and scales {tuple(self.scales.shape)} do not belong to one layer")

    def weights(self) -> Tensor:
        """(inputs, outputs) float32."""
        groups = self.groups.long()
        weights = self.codes.float()
        weights -= self.zeros.float()[groups]
        weights *= self.scales.float()[groups]
        return weights

    def integers(self) -> Integers | None:
        """As a kernel multiplies them; None where it cannot, as where the inputs of a group are no neighbours."""
        if self.codes.is_meta or len(self.codes) % len(self.scales):
            return None
        if not torch.equal(self.groups, torch.arange(len(self.codes)) // (len(self.codes) // len(self.scales))):
            return None
        middle = 2 ** (self.bits - 1)
        return integers(self.bits, (self.codes - middle).T, self.scales.T, (self.zeros - middle).T)


def unpack_gptq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, *, group_size: int, minus_one: bool
) -> Unpacked:
    """A layer of GPTQ.

    `group_size`: inputs of a group, where `g_idx` says nothing; -1: all of them. `minus_one`: zeros are stored less
    one, as in all layouts before `gptq_v2`. Raises ValueError.
    """
    bits = 32 * qzeros.shape[1] // scales.shape[1]
    if bits not in (2, 4, 8):
        raise ValueError(f"GPTQ with {bits} bits is not unpacked, only with 2, 4 or 8")
    if minus_one:  # in whole numbers, as it was subtracted: a zero of 0 has borrowed from the next one
        qzeros = qzeros + sum(1 << shift for shift in range(0, 32, bits))
    codes, zeros = _integers(qweight.T, bits).T, _integers(qzeros, bits)
    if g_idx is None or not (g_idx.is_meta or g_idx.any()):  # some programs leave zeros where inputs are in order
        g_idx = _in_order(len(codes), len(scales), group_size, scales.device)
    return Unpacked(bits, codes, zeros, scales, g_idx)


def unpack_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor, *, group_size: int) -> Unpacked:
    """A layer of AWQ. Raises ValueError."""
    if scales.shape[1] != 8 * qweight.shape[1]:
        raise ValueError(f"AWQ with {32 * qweight.shape[1] // scales.shape[1]} bits is not unpacked, only with 4")
    codes, zeros = (
        _integers(packed, 4).unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1) for packed in (qweight, qzeros)
    )
    return Unpacked(4, codes, zeros, scales, _in_order(len(codes), len(scales), group_size, scales.device))


def _integers(packed: Tensor, bits: int) -> Tensor:
    """(rows, columns) -> (rows, columns * 32 / bits), lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    return ((packed[:, :, None] >> shifts) & (2**bits - 1)).flatten(1)


def _in_order(inputs: int, groups: int, group_size: int, device: torch.device) -> Tensor:
    size = inputs if group_size == -1 else group_size
    if -(-inputs // size) != groups:  # a layer with groups of its own
        if inputs % groups:
            raise ValueError(f"{inputs} inputs in groups of {size} do not have {groups} scales")
        size = inputs // groups
    return torch.arange(inputs, device=device) // size
