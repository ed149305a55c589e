"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): the momentum of each weight of the inner linear layers,
made orthogonal; embeddings, the output head, norms, biases and experts learn by AdamW.

Steps are scaled by 0.2 sqrt(max(rows, columns)), so that both take the same learning rate (Liu et al. 2025,
arXiv:2502.16982, section 2.2).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from training.optimizers.base import Optimizer, decayed, inner_linear, setting
from training.params.refusal import Refusal
from training.params.sft import SftParams


class Muon(Optimizer):
    parameter = "optim"
    names = frozenset({"muon"})
    beside = frozenset()
    reads = frozenset({"optim", "optim_args"})
    train_types = frozenset({"full"})
    whole = True

    def settings(self, params: SftParams) -> Mapping[str, type]:
        return {"momentum": float, "nesterov": bool, "ns_steps": int}

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = []
        if not 0 <= setting(params, "momentum", 0.95) < 1:
            found.append(("optim_args", "momentum must be 0 or more, and below 1"))
        if not 0 < setting(params, "ns_steps", 5) < 100:
            found.append(("optim_args", "ns_steps must be from 1 to 99"))
        return found

    def make(self, model: Any, params: SftParams, arguments: Any, *, steps: int) -> Any:
        from training.optimizers.both import MuonAndAdamW

        inner = {id(weight) for weight in inner_linear(model).values()}
        return MuonAndAdamW(decayed(model, arguments.weight_decay), inner, params.optim_args or {}, arguments)

    def state_bytes(self, params: SftParams, shape: Sequence[int]) -> int:
        """As if it were a weight of an inner linear layer, where it has two sides."""
        return super().state_bytes(params, shape) // (2 if len(shape) == 2 else 1)
