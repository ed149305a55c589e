"""The edits of hidden states of ReFT (Wu et al. 2024, arXiv:2404.03592)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from training.layers.interventions import Intervention


class Edit(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """h + R^T (s - (R h + c)) at every position: R of low rank, and s what the state is to be in its space.

    s is f(W h + b), or a vector b. What is there, R h + c, is taken off or not. The rows of R are orthonormal, or R is
    any matrix, and only then there may be a c. These choices make the six interventions of pyreft: LoReFT (equation 2)
    has orthonormal rows, s = W h + b, and takes off what is there.
    """

    def __init__(
        self,
        width: int,
        rank: int,
        made_of: Intervention,
        *,
        act_fn: str | None = None,
        dropout: float = 0.0,
        add_bias: bool = False,
    ) -> None:
        """`width`: of the hidden states. `act_fn`: f, by transformers' name; None: none. `dropout`: the part of the
        edited states that is dropped while training, as in pyreft. `add_bias`: whether there is a c."""
        super().__init__()
        self._made_of = made_of
        self.projection = nn.Parameter(torch.empty(width, rank))
        if made_of.orthonormal:
            nn.init.orthogonal_(self.projection)
        else:
            nn.init.kaiming_uniform_(self.projection.T, a=5**0.5)  # as nn.Linear begins
        self.bias = nn.Parameter(torch.zeros(rank)) if add_bias else None
        self.source: Any = nn.Parameter(torch.rand(rank)) if made_of.constant else nn.Linear(width, rank)
        self.act = ACT2FN[act_fn or "linear"]
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`x`, and what is returned: (..., width). In float32, whatever is computed in around it."""
        with torch.autocast(x.device.type, enabled=False):
            h, r = x.float(), self.r()
            wanted = self.source if self._made_of.constant else self.act(self.source(h))
            if self._made_of.takes_off:
                wanted = wanted - (h @ r if self.bias is None else h @ r + self.bias)
            edited: Tensor = self.dropout(h + wanted @ r.T).to(x.dtype)
        return edited

    def r(self) -> Tensor:
        """R^T: (width, rank).

        Orthonormal columns are Q of the QR decomposition of a free matrix. Weight decay makes that matrix shorter and
        leaves Q as it is; torch's own parametrisation by reflections becomes zero by it. The cost is width * rank^2.
        """
        if not self._made_of.orthonormal:
            return self.projection
        q, triangle = torch.linalg.qr(self.projection)
        return q * torch.where(torch.diagonal(triangle) < 0, -1.0, 1.0)  # signs, which the decomposition leaves open
