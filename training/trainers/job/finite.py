"""The look at what a training has come to, before anything of it is kept."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from training.report import Diverged
from training.trainers.weights.processes import in_any_process


def check_loss(total: torch.Tensor, args: Any, step: int) -> None:
    """`total`: the sum of the losses since the last log, which one that is no number has made no number.

    Raises Diverged in every process.
    """
    if in_any_process(~total.isfinite(), args):
        raise Diverged(
            f"the loss was not a number at step {step} or since the last log: try a lower learning_rate",
            param="learning_rate",
        )


def check_weights(model: torch.nn.Module, args: Any, step: int) -> None:
    """Raises Diverged in every process where a weight that is trained is no number."""
    learned = [_held(weight) for weight in model.parameters() if weight.requires_grad]
    strays = torch.stack([~weight.isfinite().all().to(args.device) for weight in learned]).any()
    if in_any_process(strays, args):
        message = f"the weights are not numbers any more after step {step}: try a lower learning_rate"
        raise Diverged(message, param="learning_rate")


def _held(weight: Tensor) -> Tensor:
    """The part of `weight` that this process holds."""
    part = getattr(weight, "ds_tensor", weight).detach()  # ZeRO-3's
    return part.to_local() if isinstance(part, DTensor) else part
