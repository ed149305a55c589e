"""The optimizers of galore-torch and apollo-torch, with what they project by in their state.

Both keep it in objects of their own, which no checkpoint can hold: torch refuses to load them. Here the state of a
checkpoint has what changes of these objects, as tensors and numbers, and they are made again of it.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from apollo_torch import APOLLOAdamW
from apollo_torch.random_projector import GradientProjector
from apollo_torch.svd_projector import GaLoreProjector as ApolloProjector
from galore_torch import GaLoreAdafactor, GaLoreAdamW
from galore_torch.galore_projector import GaLoreProjector
from torch import Tensor

from engines.errors import InvalidRequest

Groups = Sequence[dict[str, Any]]
CHANGES = ("ortho_matrix", "stored", "seed", "svd_count", "update_proj_gap", "similarities", "leading")
"""Attributes of projectors that a training changes."""
OF_PROJECTORS = ("rank", "update_proj_gap", "scale", "proj_type")
OF_LAZY_ONES = ("cos_threshold", "gamma_proj", "queue_size", "bits", "group_size")


class Keeping:
    """Goes before an optimizer among a class's bases: `state_dict` has the projections in it, and loading brings them
    back."""

    state: Any
    param_groups: Any

    def projector(self, group: dict[str, Any], state: dict[str, Any]) -> Any:
        """A new one, for a weight of `group`."""
        lazy = "cos_threshold" in group
        settings = {name: group[name] for name in OF_PROJECTORS + (OF_LAZY_ONES if lazy else ())}
        return LazyProjector(**settings) if lazy else GaLoreProjector(**settings)

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"] if "rank" in group else ():
                if weight.grad is not None and "projector" not in self.state[weight]:
                    self.state[weight]["projector"] = self.projector(group, self.state[weight])
        return super().step(closure)  # type: ignore[misc]  # the optimizer behind us

    def state_dict(self) -> Any:
        found = super().state_dict()  # type: ignore[misc]  # the optimizer behind us
        return {**found, "state": {index: _plain(state) for index, state in found["state"].items()}}

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)  # type: ignore[misc]  # the optimizer behind us
        for group in self.param_groups:
            for weight in group["params"]:
                if "projector" in (state := self.state.get(weight, {})):
                    state["projector"] = _filled(self.projector(group, state), state["projector"])


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    if "projector" not in state:
        return state
    return {**state, "projector": {name: value for name, value in vars(state["projector"]).items() if name in CHANGES}}


def _filled(projector: Any, saved: dict[str, Any]) -> Any:
    vars(projector).update(saved)
    for matrix in getattr(projector, "stored", None) or ():
        if isinstance(matrix, dict):
            matrix["codes"] = matrix["codes"].to(torch.uint8)  # torch loads all tensors in the type of the weight
    return projector


class LazyProjector(GaLoreProjector):  # type: ignore[misc]  # galore-torch is untyped
    """Q-GaLore's. Each time that the projection is computed anew, its leading singular vector is compared with the one
    before; where the last `queue_size` cosines, without their signs, which a decomposition chooses at random, are
    `cos_threshold` on average or more, it is computed after `gamma_proj` times as many steps from then on.

    With `bits`, it is kept quantised, each `group_size` numbers with a scale of their own.
    """

    def __init__(
        self,
        *,
        cos_threshold: float,
        gamma_proj: int,
        queue_size: int,
        bits: int | None,
        group_size: int,
        **settings: Any,
    ) -> None:
        self.stored: list[Any] | None = None
        self.similarities: list[float] = []
        self.leading: Tensor | None = None
        self._threshold, self._gamma, self._queue_size = cos_threshold, gamma_proj, queue_size
        self._bits, self._group_size = bits, group_size
        super().__init__(**settings)

    @property
    def ortho_matrix(self) -> Any:
        """A matrix, or two of them for `full`; None before the first step."""
        if self.stored is None:
            return None
        matrices = self.stored if self._bits is None else [restored(each, self._bits) for each in self.stored]
        return matrices if len(matrices) > 1 else matrices[0]

    @ortho_matrix.setter
    def ortho_matrix(self, computed: Any) -> None:
        if computed is None:
            return
        matrices = computed if isinstance(computed, list) else [computed]
        bits, group_size = self._bits, self._group_size
        self.stored = matrices if bits is None else [quantised(each, bits, group_size) for each in matrices]

    def get_orthogonal_matrix(self, weights: Tensor, rank: int, type: str) -> Any:
        computed = super().get_orthogonal_matrix(weights, rank, type)
        self._compare(computed[0] if type == "right" else computed[0][:, 0] if type == "full" else computed[:, 0])
        return computed

    def _compare(self, leading: Tensor) -> None:
        if self.leading is not None:
            cosine = torch.cosine_similarity(self.leading, leading, dim=0).abs().item()
            self.similarities = [*self.similarities, cosine][-self._queue_size :]
            known = len(self.similarities) == self._queue_size
            if known and sum(self.similarities) / self._queue_size >= self._threshold:
                self.update_proj_gap: int = self.update_proj_gap * self._gamma
        self.leading = leading.clone()


def quantised(matrix: Tensor, bits: int, group_size: int) -> dict[str, Any]:
    """`matrix` in `bits` bits, evenly between the least and the greatest number of each group; of up to four bits, two
    numbers in a byte."""
    size = matrix.numel()
    groups = torch.nn.functional.pad(matrix.flatten(), (0, -size % group_size)).view(-1, group_size)
    low = groups.amin(1, keepdim=True)
    step = ((groups.amax(1, keepdim=True) - low) / (2**bits - 1)).clamp(min=torch.finfo(matrix.dtype).tiny)
    codes = ((groups - low) / step).round().to(torch.uint8).flatten()
    if bits <= 4:
        pairs = torch.nn.functional.pad(codes, (0, len(codes) % 2)).view(-1, 2)
        codes = pairs[:, 0] * 16 + pairs[:, 1]
    return {"codes": codes, "low": low, "step": step, "shape": list(matrix.shape), "group_size": group_size}


def restored(kept: dict[str, Any], bits: int) -> Tensor:
    """What `quantised` made, as numbers in the type that they had."""
    codes, low, step, shape = kept["codes"], kept["low"], kept["step"], kept["shape"]
    if bits <= 4:
        codes = torch.stack((codes // 16, codes % 16), dim=1).flatten()
    groups = codes[: len(low) * kept["group_size"]].view(len(low), -1)
    numbers: Tensor = groups.to(low.dtype) * step + low
    return numbers.flatten()[: prod(shape)].view(shape)


class GaloreAdamW(Keeping, GaLoreAdamW):  # type: ignore[misc]  # galore-torch is untyped
    pass


class GaloreAdafactor(Keeping, GaLoreAdafactor):  # type: ignore[misc]
    pass


class Apollo(Keeping, APOLLOAdamW):  # type: ignore[misc]
    def projector(self, group: dict[str, Any], state: dict[str, Any]) -> Any:
        settings = {name: group[name] for name in OF_PROJECTORS}
        return (
            ApolloProjector(**settings) if group["proj"] == "svd" else GradientProjector(**settings, seed=state["seed"])
        )


def galore_adamw(groups: Groups, arguments: Any) -> Any:
    settings = {"lr": arguments.learning_rate, "betas": (arguments.adam_beta1, arguments.adam_beta2)}
    return GaloreAdamW(groups, **settings, eps=arguments.adam_epsilon, no_deprecation_warning=True)


def galore_adafactor(groups: Groups, arguments: Any) -> Any:
    return GaloreAdafactor(groups, lr=arguments.learning_rate, scale_parameter=False, relative_step=False)


def apollo(groups: Groups, arguments: Any) -> Any:
    settings = {"lr": arguments.learning_rate, "betas": (arguments.adam_beta1, arguments.adam_beta2)}
    return Apollo(groups, **settings, eps=arguments.adam_epsilon)


def step_at_once(optimizer: Any, arguments: Any, parameter: str) -> None:
    """Have each weight changed as soon as its gradient is there, which then goes: no two gradients are held at a time.

    Raises InvalidRequest, which names `parameter`, where several processes train.
    """
    if arguments.world_size > 1:
        raise InvalidRequest("several processes take the mean of all gradients first: use one", param=parameter)

    def change(weight: Tensor) -> None:
        optimizer.step()  # of all others, no gradient is there
        weight.grad = None

    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.register_post_accumulate_grad_hook(change)
