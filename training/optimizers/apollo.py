"""APOLLO (Zhu et al. 2024, arXiv:2412.05270): SGD whose step is scaled, channel by channel, as Adam's would be on
gradients that are projected to a low rank at random."""

from collections.abc import Mapping, Sequence
from typing import Any

from engines.errors import InvalidRequest
from training.optimizers.base import Optimizer, decayed, inner_linear, setting
from training.optimizers.galore import at_once, split
from training.optimizers.named import missing
from training.params.refusal import Refusal
from training.params.sft import SftParams

RANK = 128
CHOICES = {
    "proj": ("random", "svd"),
    "scale_type": ("channel", "tensor"),
    "proj_type": ("std", "reverse_std", "left", "right"),
}


class Apollo(Optimizer):
    parameter = "optim"
    names = frozenset({"apollo_adamw", "apollo_adamw_layerwise"})
    beside = frozenset()
    reads = frozenset({"optim", "optim_args"})
    train_types = frozenset({"full"})
    whole = True

    def settings(self, params: SftParams) -> Mapping[str, type]:
        return {"rank": int, "update_proj_gap": int, "scale": float} | dict.fromkeys(CHOICES, str)

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = missing("apollo_torch", "optim", params.optim)
        for name, choices in CHOICES.items():
            if (value := setting(params, name, choices[0])) not in choices:
                found.append(("optim_args", f"{name} {value} is not known; choose {' or '.join(choices)}"))
        for name in ("rank", "update_proj_gap", "scale"):
            if setting(params, name, 1) <= 0:
                found.append(("optim_args", f"{name} must be above 0"))
        return found + (at_once(params, "optim") if self.each_at_once(params) else [])

    def make(self, model: Any, params: SftParams, arguments: Any, *, steps: int) -> Any:
        from training.optimizers.projected import apollo, step_at_once

        settings = {
            "rank": setting(params, "rank", RANK),
            "proj": setting(params, "proj", "random"),
            "scale_type": setting(params, "scale_type", "channel"),
            "update_proj_gap": setting(params, "update_proj_gap", 200),
            "scale": setting(params, "scale", 1.0),
            "proj_type": setting(params, "proj_type", "std"),
        }
        learned = [weight for weight in inner_linear(model).values() if weight.requires_grad]
        large = {id(weight) for weight in learned if min(weight.shape) > settings["rank"]}
        if not large:
            message = f"no weight has more than {settings['rank']} rows and columns (rank): nothing would be projected"
            raise InvalidRequest(message, param="optim_args")
        optimizer = apollo(split(decayed(model, arguments.weight_decay), large, settings), arguments)
        if self.each_at_once(params):
            step_at_once(optimizer, arguments, "optim")
        return optimizer

    def state_bytes(self, params: SftParams, shape: Sequence[int]) -> int:
        """As if it were one of the weights that are projected, where it has two sides."""
        rank = setting(params, "rank", RANK)
        if len(shape) != 2 or min(shape) <= rank:
            return super().state_bytes(params, shape)
        return int(rank * (8 * max(shape) + 4 * min(shape)))

    def each_at_once(self, params: SftParams) -> bool:
        return params.optim.endswith("layerwise")
