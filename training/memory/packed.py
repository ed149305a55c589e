"""Linear layers as they are where a library keeps their weights quantised: what they hold, and what they make of it for
as long as they compute."""

from typing import Any

import torch
from torch import Tensor, nn

from engines.checkpoint.quantization import Quantization
from engines.checkpoint.quantize import linears_to_quantize

GROUP = 64
"""Weights that share a scale, in bitsandbytes with 4 bits and in HQQ."""


def pack(model: Any, quantization: Quantization) -> None:
    """Have the linear layers of `model` (on "meta") take what quantised ones take."""
    for path, linear in list(linears_to_quantize(model)):
        model.set_submodule(path, _Packed(linear, quantization))


class _Packed(nn.Linear):  # type: ignore[misc]  # torch is untyped here
    """What PEFT puts an adapter beside, as beside any linear layer."""

    def __init__(self, linear: nn.Linear, quantization: Quantization) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        size = int(linear.weight.numel() * _bytes_of_each(quantization, linear.weight.dtype))
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Multiplied.apply(x, self.weight, self.in_features, self.out_features)
        return y if self.bias is None else y + self.bias


class _Multiplied(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """The weights are there whole only while it computes, in either direction."""

    @staticmethod
    def forward(context: Any, x: Tensor, packed: Tensor, inputs: int, outputs: int) -> Tensor:
        context.packed, context.shape = packed, (outputs, inputs)
        return x @ packed.new_empty(outputs, inputs, dtype=x.dtype).T

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient @ context.packed.new_empty(context.shape, dtype=gradient.dtype), None, None, None


def _bytes_of_each(quantization: Quantization, dtype: torch.dtype) -> float:
    """Bytes of a weight with its part of what scales it."""
    if quantization.method == "torchao":  # 4 bits are in a byte, too
        return 1.0 + (int(dtype.itemsize) / 32 if quantization.bits == 4 else 0)
    if quantization.method == "hqq":
        return float((0.4 if quantization.bits == 3 else quantization.bits / 8) + 2 * dtype.itemsize / GROUP)
    if quantization.bits == 8:
        return 1.0
    return 0.5 + (1 if quantization.double_quant else 4) / GROUP
