"""The largest tensor that a computation makes in this thread: what memory it takes, without measuring any."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Largest(TorchDispatchMode):
    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and self.dtype in (None, leaf.dtype):
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // leaf.element_size())
        return made


@contextmanager
def largest_tensor(dtype: torch.dtype | None = None) -> Iterator[Largest]:
    """`dtype`: of those of this type alone."""
    with Largest(dtype) as found:
        yield found
