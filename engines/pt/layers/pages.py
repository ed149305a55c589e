"""Memory for weights in pages as large as the system gives.

A step of one row reads all weights once. With pages of 4 KiB the search for their addresses takes long, on a virtual
machine above all; Linux gives pages of 2 MiB to memory for which they are asked for.
"""

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

PAGE = 1 << 21
REGION = 32 * PAGE
"""Bytes; what is not written to takes no memory."""
ALIGNMENT = 64


class Pages:
    """Tensors side by side in large pages. A region is given back when the last tensor in it has gone."""

    def __init__(self, region: int = REGION) -> None:
        """`region`: bytes that are mapped at once."""
        self._region = region
        self._rest = torch.empty(0, dtype=torch.uint8)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """No memory is given out twice, and new memory is zeros."""
        taken = math.prod(shape) * dtype.itemsize
        if len(self._rest) < taken:
            self._rest = _region(max(self._region, taken))
        tensor = self._rest[:taken].view(dtype).view(shape)
        self._rest = self._rest[room(taken) :]
        return tensor


def room(size: int) -> int:
    """Bytes that a tensor of so many takes from a region."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _region(size: int) -> Tensor:
    """At least so many bytes, from the start of a large page on."""
    memory = mmap.mmap(-1, size + PAGE, **_private())
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    region = torch.frombuffer(memory, dtype=torch.uint8)
    return region[-int(region.data_ptr()) % PAGE :]


def _private() -> dict[str, int]:
    """Memory of this process alone: shared memory may not have large pages."""
    return {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
