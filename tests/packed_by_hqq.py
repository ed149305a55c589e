"""HQQ's packing, written from its description, one integer after another."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.packed import packs

EACH = {8: 1, 4: 2, 3: 10, 2: 4}
"""How many integers lie in a number, by their bits."""


@dataclass(frozen=True, slots=True)
class HqqPacking:
    """How a layer is quantised. `axis`: along which weights share a scale, once they lie in rows of `group`."""

    bits: int = 4
    axis: int = 1
    group: int = 16

    @property
    def told(self) -> dict[str, object]:
        """What config.json says."""
        settings = {"nbits": self.bits, "channel_wise": True, "group_size": self.group, "axis": self.axis}
        told = {"weight_quant_params": settings, "scale_quant_params": None, "zero_quant_params": None}
        return {"quant_method": "hqq", "quant_config": told, "skip_modules": ["lm_head"]}

    def packs(self, name: str) -> bool:
        return packs(name)

    def pack(self, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The tensors that a weight (outputs, inputs) is packed in, by name, and the weight that they stand for, in
        float32."""
        rows = weight.reshape(-1, self.group) if self.axis == 1 else weight.reshape(self.group, -1)
        low, high = rows.amin(self.axis, keepdim=True), rows.amax(self.axis, keepdim=True)
        scale = ((high - low) / (2**self.bits - 1)).half().float()
        zero = (-low / scale).half().float()
        codes = (rows / scale + zero).round().clamp(0, 2**self.bits - 1)
        form = "3bit_32" if self.bits == 3 else f"{self.bits}bit_u8"
        tensors = {
            "W_q": self._packed(codes), "scale": scale.half(), "zero": zero.half(), "packing": _text(form),
            "shape": torch.tensor(weight.shape), "axis": _number(self.axis), "group_size": _number(self.group),
            "nbits": _number(self.bits), "compute_dtype": _text("torch.float16"), "optimize": _flag(True),
            "view_as_float": _flag(False), "encoded_state_dict": _flag(True), "stores_quant_config": _flag(True),
        }  # fmt: skip
        return tensors, ((codes - zero) * scale).reshape(weight.shape)

    def _packed(self, codes: Tensor) -> Tensor:
        each, kind = EACH[self.bits], np.uint32 if self.bits == 3 else np.uint8
        height = math.ceil(len(codes) / each)
        packed = np.zeros((height, codes.shape[1]), dtype=kind)
        for row, numbers in enumerate(np.asarray(codes, dtype=kind)):
            packed[row % height] |= numbers << kind(self.bits * (each - 1 - row // height))
        return torch.from_numpy(packed.view(np.int32).copy() if self.bits == 3 else packed)


def _text(text: str) -> Tensor:
    return torch.tensor([*map(ord, text)], dtype=torch.uint8)


def _number(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int32)


def _flag(value: bool) -> Tensor:
    return torch.tensor(int(value), dtype=torch.uint8)
