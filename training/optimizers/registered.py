"""An optimizer that a file of `custom_register_path` registers."""

from typing import Any

from training.optimizers.base import Optimizer
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.plugins import load


class Registered(Optimizer):
    parameter = "optimizer"
    beside = frozenset({"adamw_torch_fused"})
    reads = frozenset({"optimizer"})

    def asked_for(self, params: SftParams) -> bool:
        return params.optimizer is not None

    def refusals(self, params: SftParams) -> list[Refusal]:
        if params.custom_register_path:  # the worker runs the file, and finds it there or not
            return []
        return [("optimizer", "no file registers it: name the file by custom_register_path")]

    def make(self, model: Any, params: SftParams, arguments: Any, *, steps: int) -> Any:
        from torch.optim import Optimizer as OfTorch

        assert params.optimizer is not None
        plugin = load(params.custom_register_path).find("optimizer", params.optimizer)
        made = plugin(model, arguments)
        if not isinstance(made, OfTorch):
            raise plugin.refused(f"it must return a torch.optim.Optimizer, not {type(made).__name__}")
        return made
