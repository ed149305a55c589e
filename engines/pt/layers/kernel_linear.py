"""Linear layers that our C kernels compute (`kernels/layer.c`), from weights packed for them."""

import ctypes

import torch
from torch import Tensor, nn


class Grid(ctypes.Structure):
    """How a layer's weights lie in memory (`kernels/panels.h`)."""

    _fields_ = tuple((name, ctypes.c_int32) for name in ("bits", "group", "zeros", "offsets"))


PLAIN = (16, 0, 0, 0)
"""The grid of weights that are bfloat16 values."""


class KernelLinear(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """y = x W^T + b; (..., in_features) -> (..., out_features).

    Sums are float32. `dots`: x is rounded to bfloat16, for which the CPU has an instruction. `wide`: y is float32, and
    not of x's dtype.
    """

    def __init__(
        self, linear: nn.Linear, packed: Tensor, grid: Grid, library: ctypes.CDLL, *, dots: bool, wide: bool
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dots, self.wide, self.grid = dots, wide, grid
        self._grid, self._packed = ctypes.addressof(grid), packed
        self.bias = None if linear.bias is None else linear.bias.detach().float().contiguous()
        self._multiply = library.linear

    def forward(self, x: Tensor) -> Tensor:
        rows = x.to(torch.bfloat16 if self.dots else torch.float32).contiguous()
        out = rows.new_empty(*x.shape[:-1], self.out_features, dtype=torch.float32)
        bias = None if self.bias is None else self.bias.data_ptr()
        pointers = rows.data_ptr(), self._packed.data_ptr(), bias, out.data_ptr()
        sizes = rows.numel() // self.in_features, self.in_features, self.out_features
        self._multiply(self._grid, self.dots, *pointers, *sizes)
        return out if self.wide else out.to(x.dtype)
