"""Several numbers that are told of the same samples, gathered from all processes as one tensor."""

from dataclasses import fields
from typing import Self

import torch
from torch import Tensor


class Columns:
    """Goes before a dataclass of tensors of one shape."""

    @classmethod
    def of(cls, stacked: Tensor) -> Self:
        return cls(*stacked.unbind(-1))

    def stacked(self) -> Tensor:
        """(..., fields)"""
        return torch.stack([getattr(self, field.name) for field in fields(self)], dim=-1)  # type: ignore[arg-type]
