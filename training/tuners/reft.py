"""ReFT (Wu et al. 2024, arXiv:2404.03592): what a layer comes to is edited in a few directions, h + R^T (W h + b - R h)
in LoReFT; the weights stay as they are. `training/layers/reft.py` has the six interventions.

At every position, of prompts and of answers. The paper edits the first and last positions of prompts only; the
reference edits every position in training.
"""

from collections.abc import Callable
from typing import Any, get_args

from engines.errors import InvalidRequest
from training.layers.interventions import INTERVENTIONS
from training.params.houlsby import Activation
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.params.tuner import ReftParams
from training.tuners.inserted import InsertingTuner

VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dropout": (lambda value: isinstance(value, int | float) and 0 <= value < 1, "a part, from 0 to below 1"),
    "act_fn": (lambda value: value in (None, *get_args(Activation)), f"one of {', '.join(get_args(Activation))}"),
    "add_bias": (lambda value: isinstance(value, bool), "true or false"),
}
"""Key of `reft_args` -> which values fit, and what is told of others."""


class Reft(InsertingTuner):
    name = "reft"
    reads = frozenset(ReftParams.model_fields)
    learning_rate = 9e-4  # the paper's, for models that answer; at the rate of adapters so few numbers learn little

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = super().refusals(params)
        kind, args = params.reft_intervention_type, params.reft_args or {}
        known = INTERVENTIONS[kind].args
        for name in sorted(args.keys() - known):
            choices = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            found.append(("reft_args", f"{kind} has no {name!r}: {choices}"))
        for name, (fits, wanted) in VALUES.items():
            if name in args and name in known and not fits(args[name]):
                found.append(("reft_args", f"{name} is {wanted}"))
        return found

    def check_config(self, params: SftParams, config: Any) -> None:
        text = config.get_text_config()
        layers, given = text.num_hidden_layers, params.reft_layers or ()
        if any(not 0 <= number < layers for number in given) or len(set(given)) < len(given):
            message = f"the model has the layers 0 to {layers - 1}: name each of them once at most"
            raise InvalidRequest(message, param="reft_layers")
        if params.reft_rank > text.hidden_size:
            raise InvalidRequest(f"it is above the model's width, {text.hidden_size}", param="reft_rank")

    def settings(self, params: SftParams) -> dict[str, Any]:
        layers = None if params.reft_layers is None else list(params.reft_layers)
        return {
            "reft_intervention_type": params.reft_intervention_type,
            "reft_rank": params.reft_rank,
            "reft_layers": layers,
            "reft_args": params.reft_args,
        }
