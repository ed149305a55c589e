"""Training the model's own weights, all or some of them."""

from typing import Any

from engines.errors import InvalidRequest
from training.params.sft import SftParams
from training.params.tuner import FullParams
from training.refusal import Refusal
from training.tuners.base import Tuned, Tuner


class Full(Tuner):
    name = "full"
    makes = "model"
    mergeable = False
    float16 = False
    reads = frozenset(FullParams.model_fields)
    learning_rate = 1e-5

    def refusals(self, params: SftParams) -> list[Refusal]:
        return [("adapters", "only train_type lora goes on with an adapter; merge it first")] if params.adapters else []

    def attach(self, model: Any, params: SftParams) -> Tuned:
        _choose_weights(model, params)
        return Tuned(model)


def _choose_weights(model: Any, params: SftParams) -> None:
    """Have those weights learn that the parameters say. Raises InvalidRequest."""
    weights = list(model.named_parameters())
    frozen_numel = params.freeze_parameters_ratio * sum(weight.numel() for _, weight in weights)
    seen = 0
    for name, weight in weights:
        seen += weight.numel()
        frozen = seen <= frozen_numel or name.startswith(params.freeze_parameters)
        weight.requires_grad_(not frozen or name.startswith(params.trainable_parameters))
    _check_prefixes("freeze_parameters", params.freeze_parameters, weights)
    _check_prefixes("trainable_parameters", params.trainable_parameters, weights)
    if not any(weight.requires_grad for _, weight in weights):
        raise InvalidRequest("every weight is frozen: nothing would be trained", param="freeze_parameters_ratio")


def _check_prefixes(param: str, prefixes: tuple[str, ...], weights: list[tuple[str, Any]]) -> None:
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name, _ in weights):
            raise InvalidRequest(f"no weight's name begins with {prefix!r}", param=param)
