"""Heads that judge texts, computed in float32 whatever the model computes in: of a score, bfloat16 keeps two or three
digits."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engines.checkpoint.heads import HEAD_NAMES


class ExactHead(nn.Linear):  # type: ignore[misc]  # torch is untyped here
    """A linear layer in float32, under autocast too."""

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return linear(hidden.float(), self.weight.float(), None if self.bias is None else self.bias.float())


def make_exact(model: Any) -> None:
    """Have the head of a `PreTrainedModel` for sequence classification computed so; its weights keep their type."""
    for name in HEAD_NAMES:
        head = getattr(model, name, None)
        if type(head) is nn.Linear:
            head.__class__ = ExactHead  # copies that PEFT makes of it are such heads too
