"""The optimizers beside AdamW, one file each. Light: the server refuses jobs by them."""

from training.optimizers.base import Optimizer
from training.optimizers.loraplus import LoraPlus
from training.params.refusal import Refusal
from training.params.sft import SftParams

OPTIMIZERS: tuple[Optimizer, ...] = (LoraPlus(),)


def optimizer_of(params: SftParams) -> Optimizer | None:
    """The one that `params` ask for; None: AdamW."""
    return next(iter(_asked_for(params)), None)


def refusals(params: SftParams) -> list[Refusal]:
    """What the optimizer that is asked for does not take, and any that is asked for besides."""
    asked = _asked_for(params)
    found = [refusal for optimizer in asked for refusal in optimizer.refusals(params)]
    return found + [(other.parameter, f"not together with {asked[0].parameter}") for other in asked[1:]]


def _asked_for(params: SftParams) -> list[Optimizer]:
    return [optimizer for optimizer in OPTIMIZERS if optimizer.asked_for(params)]
