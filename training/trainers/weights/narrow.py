"""Gradients of float32 weights, kept in bfloat16 where that is what they were computed in.

Under autocast a weight is cast for its product, and the gradient of that product is cast back: of its 32 bits, the last
16 are zeros. Kept without them until the optimizer takes it, it is the same gradient in half the memory, at the moment
at which a training of all weights has most. Whether a weight's gradients are so follows from how the model computes
with it, and is seen by the first of them: one that is a sum of several, or of a layer that computes in float32, is not.
The later ones of a dense layer are not cast back at all.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from training.optimizers import optimizer_of
from training.optimizers.base import ADAMW
from training.params.sft import SftParams
from training.processes import Processes
from training.trainers.weights.divided import is_divided
from training.trainers.weights.own_norm import OwnNorm
from training.trainers.weights.precision import Precision
from training.tuners import tuner_of

PIECE = 1 << 22
"""Numbers (16 MiB in float32) of gradients that the optimizer is given at a time."""


def gradients_stay(params: SftParams) -> bool:
    """Whether the gradients of a step are this process's alone, and stay until all of them are there."""
    alone = Processes.of_environment().count == 1 and not is_divided(params)  # DDP sums them, and no sparse ones
    return alone and not optimizer_of(params).each_at_once(params)


def narrows(params: SftParams, precision: Precision) -> bool:
    """Whether a training on a CPU keeps gradients so."""
    is_adamw = optimizer_of(params).parameter == "optim" and params.optim in ADAMW
    one_pass = params.gradient_accumulation_steps == 1 and params.method != "ppo"
    types = precision.autocast == torch.bfloat16 and precision.learning == torch.float32
    return tuner_of(params).makes == "model" and is_adamw and one_pass and types and gradients_stay(params)


class NarrowGradients:
    """Those of `model`, whose weights an AdamW of torch changes after one backward pass."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._scale: Tensor | None = None
        self._known: dict[Tensor, bool] = {}
        weights = weights_of(model)
        for weight in weights:
            weight.grad_dtype = None  # any
            weight.register_post_accumulate_grad_hook(self._keep)
        dense = set(weights)
        for module in model.modules():
            if type(module) is nn.Linear and module.weight in dense:
                module.register_forward_pre_hook(self._cast)
                module.register_forward_hook(_put_back, always_call=True)

    def _cast(self, layer: Any, _: Any) -> None:
        """Have `layer` multiply by what autocast would make of its weight, in a way that casts no gradient back."""
        weight, kind = layer.weight, layer.weight.device.type
        if not (self._known.get(weight) and torch.is_grad_enabled() and torch.is_autocast_enabled(kind)):
            return
        if torch.get_autocast_dtype(kind) == torch.bfloat16:
            narrow: Any = _Cast.apply(weight)
            narrow.of = weight
            layer._parameters["weight"] = narrow

    def _keep(self, weight: Tensor) -> None:
        grad = weight.grad
        assert grad is not None, "it is there now"
        if self._known.get(weight) is False:
            return
        if grad.dtype == torch.bfloat16:  # as `_cast` had it
            return
        narrow, known = grad.bfloat16(), self._known.get(weight)
        if known is None:
            known = bool(torch.equal(narrow.float(), grad))
            if not known or grad.any():  # of zeros nothing can be seen
                self._known[weight] = known
        if known:
            weight.grad = narrow

    def clip(self, most: float) -> Tensor:
        """The norm of all gradients, scalar, which the optimizer will take scaled down to `most`. torch's
        `clip_grad_norm_`, but for when it scales."""
        grads = [weight.grad for weight in self._model.parameters() if weight.grad is not None]
        norms = [torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads]
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
        self._scale = (most / (norm + 1e-6)).clamp(max=1.0)
        return norm

    def given_to(self, optimizer: Any) -> None:
        """Have `optimizer`, a torch.optim.AdamW, take them as float32, some at a time."""
        optimizer.__class__ = InPieces
        optimizer.narrow = self

    def pieces(self, weights: list[Tensor]) -> Iterator[None]:
        """Have some of `weights` after others have their gradients as they are to be used, and the rest none. None has
        one at the end."""
        waiting: list[tuple[Tensor, Any]] = [(weight, weight.grad) for weight in reversed(weights)]
        for weight in weights:
            weight.grad = None
        room = torch.empty(max([PIECE, *(weight.numel() for weight in weights)]))
        while waiting:
            size = 0
            given: list[Tensor] = []
            while waiting and (not given or size + waiting[-1][0].numel() <= PIECE):
                weight, grad = waiting.pop()
                weight.grad = self._used(grad, room[size : size + weight.numel()].view_as(weight))
                size += weight.numel()
                given.append(weight)
            yield
            for weight in given:
                weight.grad = None
        self._scale = None

    def _used(self, grad: Tensor, room: Tensor) -> Tensor:
        wide = grad if grad.dtype == torch.float32 else room.copy_(grad)
        return wide if self._scale is None else wide.mul_(self._scale)


class _Cast(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """A weight in bfloat16, whose gradient stays so."""

    @staticmethod
    def forward(context: Any, weight: Tensor) -> Tensor:
        return weight.bfloat16()

    @staticmethod
    def backward(context: Any, grad: Tensor) -> Tensor:
        return grad


def _put_back(layer: Any, *_: Any) -> None:
    layer._parameters["weight"] = getattr(layer.weight, "of", layer.weight)


def weights_of(model: Any) -> list[Any]:
    """Those whose gradients may be of products in half precision: of embeddings, rows are summed, and experts' products
    are not cast."""
    embeddings = model.get_input_embeddings()
    rows = None if embeddings is None else embeddings.weight
    learning = [weight for weight in model.parameters() if weight.requires_grad and weight is not rows]
    return [weight for weight in learning if weight.dtype == torch.float32 and weight.dim() == 2]


class InPieces(torch.optim.AdamW):  # type: ignore[misc]  # torch is untyped here
    """Changes each weight as AdamW does, which looks at no other weight meanwhile."""

    narrow: NarrowGradients

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Any = None) -> None:
        assert closure is None, "transformers' trainer has none"
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        for _ in self.narrow.pieces(weights):
            super().step()


class NarrowedGradients(OwnNorm):
    """Goes before a Trainer among a class's bases: keeps gradients so, where `narrow_gradients` asked for it."""

    _narrow: NarrowGradients | None = None

    if TYPE_CHECKING:
        optimizer: Any

    def narrow_gradients(self, model: nn.Module) -> None:
        self._narrow = NarrowGradients(model)

    def create_optimizer(self, *given: Any) -> Any:
        made = super().create_optimizer(*given)  # type: ignore[misc]  # the Trainer behind us
        if self._narrow is not None:
            self._narrow.given_to(self.optimizer)
        return made

    def _clipped(self, model: Any, most: float) -> Tensor | None:
        return self._narrow.clip(most) if self._narrow is not None else super()._clipped(model, most)
