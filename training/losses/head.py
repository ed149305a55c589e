"""What the loss of a model with a head is: of what the head says of whole texts."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Judged:
    """What one forward pass says of a batch."""

    loss: Tensor
    """Scalar: a mean of the batch."""
    seen: Tensor
    """(samples, numbers): what is measured from one log to the next."""


class HeadLoss(Protocol):
    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> Judged:
        """`inputs`: a batch, as the collator makes it."""
        ...

    def measure(self, seen: Tensor) -> dict[str, float]:
        """Metrics of the batches whose `seen` were put one under the other."""
        ...
