"""Linear layers whose weights stay integers of 4 or 8 bits in memory, multiplied by our C kernel."""

import ctypes

import torch
from torch import Tensor, nn

from engines.checkpoint.integers import Integers
from engines.pt.pages import Pages


class Grid(ctypes.Structure):
    """How a layer's weights lie in memory (`kernels/products.h`)."""

    _fields_ = tuple((name, ctypes.c_int32) for name in ("bits", "group", "zeros", "offsets"))


PLAIN = (16, 0, 0, 0)
"""The grid of weights that are bfloat16 values."""


class QuantizedLinear(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """y = x W^T + b with W in integers and scales; (..., in_features) -> (..., out_features).

    Sums are float32. `dots`: x is rounded to bfloat16, for which the CPU has an instruction. `wide`: y is float32, and
    not of x's dtype.
    """

    def __init__(
        self,
        linear: nn.Linear,
        integers: Integers,
        library: ctypes.CDLL,
        pages: Pages | None = None,
        *,
        dots: bool,
        wide: bool,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dots, self.wide = dots, wide
        zeros, offsets = integers.zeros, integers.offsets
        self.grid = Grid(integers.bits, integers.group, zeros is not None, offsets is not None)
        self._grid = ctypes.addressof(self.grid)
        size = library.quantized_size(self._grid, self.in_features, self.out_features)
        self._packed = (pages or Pages()).empty(size, torch.uint8)
        library.pack_quantized(
            self._grid,
            integers.codes.data_ptr(),
            integers.scales.data_ptr(),
            None if zeros is None else zeros.data_ptr(),
            None if offsets is None else offsets.data_ptr(),
            self._packed.data_ptr(),
            self.in_features,
            self.out_features,
        )
        self.bias = None if linear.bias is None else linear.bias.detach().float().contiguous()
        self._multiply = library.linear_quantized

    @property
    def nbytes(self) -> int:
        """What the weights take in memory."""
        return int(self._packed.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.to(torch.bfloat16 if self.dots else torch.float32).contiguous()
        out = rows.new_empty(*x.shape[:-1], self.out_features, dtype=torch.float32)
        bias = None if self.bias is None else self.bias.data_ptr()
        pointers = rows.data_ptr(), self._packed.data_ptr(), bias, out.data_ptr()
        sizes = rows.numel() // self.in_features, self.in_features, self.out_features
        self._multiply(self._grid, self.dots, *pointers, *sizes)
        return out if self.wide else out.to(x.dtype)
