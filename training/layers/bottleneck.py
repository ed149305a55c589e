"""The adapter of Houlsby et al. 2019 (arXiv:1902.00751)."""

from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN


class Bottleneck(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """x + W_up f(W_down x + b_down) + b_up, of what attention or MLP come to, before it is added to the residual
    stream (their section 2.1).

    W_up and b_up begin as zero, so that the model begins as itself. Theirs begin near zero: normal, with a standard
    deviation of 1e-2, below which their results do not change (section 3.6).
    """

    def __init__(self, width: int, *, length: int, activation: str) -> None:
        """`width`: of the hidden states. `length`: of the bottleneck. `activation`: by transformers' name."""
        super().__init__()
        self.down = nn.Linear(width, length)
        self.act = ACT2FN[activation]
        self.up = nn.Linear(length, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Any:
        """`x`, and what is returned: (..., width)."""
        return x + self.up(self.act(self.down(x.to(self.down.weight.dtype)))).to(x.dtype)
