"""Linear layers whose weights stay integers of 4 or 8 bits in memory, multiplied by our C kernel."""

import ctypes

import torch
from torch import nn

from engines.checkpoint.integers import Integers
from engines.pt.layers.kernel_linear import Grid, KernelLinear
from engines.pt.layers.pages import Pages


class QuantizedLinear(KernelLinear):
    """y = x W^T + b with W in integers and scales; (..., in_features) -> (..., out_features)."""

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
        zeros, offsets = integers.zeros, integers.offsets
        grid = Grid(integers.bits, integers.group, zeros is not None, offsets is not None)
        address, sizes = ctypes.addressof(grid), (linear.in_features, linear.out_features)
        packed = (pages or Pages()).zeros([library.quantized_size(address, *sizes)], torch.uint8)
        library.pack_quantized(
            address,
            integers.codes.data_ptr(),
            integers.scales.data_ptr(),
            None if zeros is None else zeros.data_ptr(),
            None if offsets is None else offsets.data_ptr(),
            packed.data_ptr(),
            *sizes,
        )
        super().__init__(linear, packed, grid, library, dots=dots, wide=wide)

    @property
    def nbytes(self) -> int:
        """What the weights take in memory."""
        return int(self._packed.nbytes)
