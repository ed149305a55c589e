"""LISA (Pan et al. 2024, arXiv:2403.17919): of the model's layers, a few at a time learn, drawn anew after a number of
steps; embeddings, the output head and the last norm always do.

What the optimizer keeps of a layer is given up when another takes its turn: memory is what LISA saves. Which layers
learn follows from the seed and the step alone.
"""

import random
from collections.abc import Sequence
from typing import Any

from engines.errors import InvalidRequest
from training.optimizers.base import ADAMW, Optimizer
from training.optimizers.named import Named
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.params.tuner import LisaParams


class Lisa(Optimizer):
    parameter = "lisa_activated_layers"
    beside = ADAMW | {
        "adamw_bnb_8bit",
        "adamw_8bit",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "lion_32bit",
        "lion_8bit",
    }
    reads = frozenset(LisaParams.model_fields)
    train_types = frozenset({"full"})
    whole = True

    def asked_for(self, params: SftParams) -> bool:
        return params.lisa_activated_layers > 0

    def refusals(self, params: SftParams) -> list[Refusal]:
        return Named().refusals(params)

    def arguments(self, params: SftParams) -> dict[str, Any]:
        return Named().arguments(params)

    def callbacks(self, model: Any, params: SftParams) -> Sequence[Any]:
        from training.optimizers.turns import Turns

        layers = _more_than_learn(model, params)
        return (Turns(layers, lambda step: active(params, len(layers), step)),)

    def make(self, model: Any, params: SftParams, arguments: Any, *, steps: int) -> None:
        if arguments.world_size > 1:
            message = "several processes would wait for the gradients of layers at rest: use one"
            raise InvalidRequest(message, param="lisa_activated_layers")

    def state_bytes(self, params: SftParams, shape: Sequence[int]) -> int:
        """Of a weight whose turn it is."""
        return Named().state_bytes(params, shape)

    def rest(self, model: Any, params: SftParams) -> None:
        layers = _more_than_learn(model, params)
        for number in set(range(len(layers))) - active(params, len(layers), 0):
            layers[number].requires_grad_(False)


def active(params: SftParams, layers: int, step: int) -> frozenset[int]:
    """Numbers of the layers, among `layers`, that learn in the step after `step` others."""
    draw = random.Random(f"{params.seed} {step // params.lisa_step_interval}")
    return frozenset(draw.sample(range(layers), params.lisa_activated_layers))


def _more_than_learn(model: Any, params: SftParams) -> list[Any]:
    """The model's layers. Raises InvalidRequest where all of them would learn."""
    layers = layers_of(model)
    if params.lisa_activated_layers >= len(layers):
        message = f"the model has {len(layers)} layers: name fewer, or leave it out and train all"
        raise InvalidRequest(message, param="lisa_activated_layers")
    return layers


def layers_of(model: Any) -> list[Any]:
    """The model's layers, in their order: its longest list of modules."""
    from torch import nn

    lists: list[list[Any]] = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])
