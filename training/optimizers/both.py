"""Muon for some weights and AdamW for the others, as one optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class MuonAndAdamW(torch.optim.Optimizer):  # type: ignore[misc]  # torch is untyped here
    """Two optimizers that share their groups of weights, and what they keep of each weight, with this one: schedules,
    checkpoints and whatever else looks at it see a single optimizer."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], inner: set[int], settings: Mapping[str, Any], arguments: Any
    ) -> None:
        """`groups`: as of any optimizer. `inner`: ids of the weights that Muon changes. `settings`: Muon's.
        `arguments`: transformers' TrainingArguments."""
        lr, betas = arguments.learning_rate, (arguments.adam_beta1, arguments.adam_beta2)
        orthogonal, others = _divided(groups, inner)
        muon = torch.optim.Muon(orthogonal, lr=lr, adjust_lr_fn="match_rms_adamw", **settings)
        parts = [muon, *([torch.optim.AdamW(others, lr=lr, betas=betas, eps=arguments.adam_epsilon)] if others else [])]
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        self._share()

    def step(self, closure: Any = None) -> None:
        assert closure is None, "the trainer gives none"
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state


def _divided(groups: Sequence[dict[str, Any]], inner: set[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for group in groups:
        for part, is_inner in zip(found, (True, False), strict=True):
            weights = [weight for weight in group["params"] if (id(weight) in inner) == is_inner]
            if weights:
                part.append({**group, "params": weights})
    return found
