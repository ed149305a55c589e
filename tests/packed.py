"""GPTQ's and AWQ's packing, written from the definition of the formats, one integer after another."""

import re
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbours lies in each part of a number of 32 bits, lowest first."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a layer is quantised. `act_order`: GPTQ's `desc_act`, inputs of a group are not neighbours."""

    method: str = "gptq"
    layout: str = "gptq"
    bits: int = 4
    group: int = 16
    symmetric: bool = True
    act_order: bool = False
    turned: bool = False
    """Whether the plain weights are (inputs, outputs), as those of `Conv1D`."""

    @property
    def told(self) -> dict[str, object]:
        """What config.json says."""
        told = {"quant_method": self.method, "bits": self.bits, "group_size": self.group}
        if self.method == "awq":
            return told | {"version": self.layout, "zero_point": not self.symmetric, "modules_to_not_convert": None}
        return told | {"checkpoint_format": self.layout, "desc_act": self.act_order, "sym": self.symmetric}

    def packs(self, name: str) -> bool:
        return packs(name)

    def pack(self, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The tensors that a weight (outputs, inputs) is packed in, by name, and the weight that they stand for, in
        float32."""
        if self.turned:
            tensors, meant = replace(self, turned=False).pack(weight.T.contiguous())
            return tensors, meant.T.contiguous()
        _, inputs = weight.shape
        groups = torch.arange(inputs) // (inputs if self.group == -1 else self.group)
        if self.act_order:
            groups = groups[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]
        scales, zeros = self._scales(weight, groups)
        integers = (weight.T / scales[groups] + zeros[groups]).round().clamp(0, self.most)
        meant = (integers - zeros[groups]) * scales[groups]
        tensors = {"scales": scales.half()}
        if self.method == "awq":
            tensors |= {"qweight": _columns(integers, 4, AWQ_ORDER), "qzeros": _columns(zeros, 4, AWQ_ORDER)}
        else:
            tensors |= {"qweight": _columns(integers.T, self.bits).T.contiguous(), "g_idx": groups.int()}
            words = _columns(zeros, self.bits)
            if self.layout == "gptq":  # v1
                words = (words.long() - sum(1 << shift for shift in range(0, 32, self.bits))).int()
            tensors["qzeros"] = words
        return tensors, meant.T.contiguous()

    @property
    def most(self) -> int:
        return 2**self.bits - 1

    def _scales(self, weight: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """(groups, outputs) scales, as float16 has them, and zeros."""
        rows = [weight.T[groups == group] for group in range(int(groups.max()) + 1)]
        high, low = (torch.stack([pick(each, 0).values for each in rows]) for pick in (torch.max, torch.min))
        if self.symmetric:
            scales = (torch.maximum(high, -low) * 2 / self.most).half().float()
            return scales, torch.full_like(scales, 2 ** (self.bits - 1))
        scales = ((high - low) / self.most).half().float()
        return scales, (-low / scales).round().clamp(0, self.most)


def packs(name: str) -> bool:
    """Whether the weight of that name is packed: those of linear layers are, but for the head and what chooses
    experts."""
    return re.search(r"(\w+_proj|c_attn|c_proj|c_fc|w[123])\.weight$", name) is not None


def _columns(numbers: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """(rows, columns) integers -> (rows, columns * bits / 32) numbers of 32 bits."""
    each = 32 // bits
    found = np.asarray(numbers, dtype=np.uint32)
    packed = np.zeros((found.shape[0], found.shape[1] // each), dtype=np.uint32)
    for column in range(packed.shape[1]):
        for part in range(each):
            place = part if order is None else order[part]
            packed[:, column] |= found[:, column * each + place] << np.uint32(bits * part)
    return torch.from_numpy(packed.view(np.int32).copy())
