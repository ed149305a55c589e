"""LoRA and DoRA beside a layer in one piece: PEFT's numbers, with fewer passes over the rows. The layer is a plain one,
or one of bitsandbytes' 4 bits (QLoRA: Dettmers et al. 2023, arXiv:2305.14314), whose weights are made for each product.

PEFT adds, casts and scales in steps of their own, each of which reads and writes a matrix as large as the layer's
input or result. Here the update is added by the product that makes it, forwards and backwards. For DoRA (Liu et al.
2024, arXiv:2402.09353, equation 5) PEFT also makes the changed weights anew in every pass, to take their norms; here
the norms come of the products of the small matrices.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from peft.import_utils import is_bnb_4bit_available
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PIECE = 1 << 18
"""Weights (1 MiB) that are made float32 at a time for their norms: larger pieces leave gaps in the C library's heap."""

Weight = Callable[[], Tensor]
"""Gives the weights of a layer (out, in), in the type that it computes in."""


def in_one_piece(model: nn.Module) -> None:
    """Have the LoRA layers of `model` compute so, where they are beside plain layers or those of 4 bits. Whatever
    else there is, as an adapter that is merged or switched off, is left to PEFT, call by call."""
    kinds = _kinds()
    for module in model.modules():
        if type(module) in kinds and _is_known(module.base_layer):
            module.__class__ = kinds[type(module)]


@cache
def _kinds() -> dict[type, type]:
    """PEFT's layers -> those in one piece."""
    kinds = [Linear]
    if is_bnb_4bit_available():
        from peft.tuners.lora.bnb import Linear4bit

        kinds.append(Linear4bit)
    return {kind: type(f"OnePiece{kind.__name__}", (OnePiece, kind), {}) for kind in kinds}


def _is_known(layer: Any) -> bool:
    is_plain = type(layer) is nn.Linear and type(layer.weight) is nn.Parameter
    return is_plain or type(layer.weight).__name__ == "Params4bit"


def _weight_of(layer: Any) -> Weight:
    if type(layer) is nn.Linear:
        return lambda: layer.weight
    return lambda: _dequantized(layer.weight).to(layer.compute_dtype)


def _dequantized(weight: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    dense: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return dense


class OnePiece:
    """What PEFT's layers are derived from besides, so that their forward pass is `Updated`."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        name = None if args or kwargs else self._only_adapter(x)
        if name is None:
            result: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]  # PEFT's
            return result
        bias, dtype = self.base_layer.bias, _type_of(self.base_layer)
        given = _weight_of(self.base_layer), self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        x = x.to(dtype)
        if name not in self.lora_variant:
            return _updated(x, self.lora_dropout[name](x) if self._drops(name) else None, bias, *given)
        scale = self.lora_magnitude_vector[name].weight / _norms(*given)
        y = _updated(x, None, None, *given) * scale.to(dtype)
        return y if bias is None else y + bias.to(dtype)

    def _only_adapter(self: Any, x: Tensor) -> str | None:
        """The name of the one adapter in use; None where PEFT's own forward pass has to compute it."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1 or not _computes_alike(self.base_layer, x):
            return None
        name: str = names[0]
        variant = self.lora_variant.get(name)
        is_known = variant is None or (type(variant) is DoraLinearVariant and not self._drops(name))
        base_learns = any(parameter.requires_grad for parameter in self.base_layer.parameters())
        return name if is_known and not base_learns and self.lora_B[name].bias is None else None

    def _drops(self: Any, name: str) -> bool:
        return self.training and not isinstance(self.lora_dropout[name], nn.Identity)


def _type_of(layer: Any) -> Any:
    """The type that a layer computes in."""
    return layer.weight.dtype if type(layer) is nn.Linear else layer.compute_dtype


def _computes_alike(layer: Any, x: Tensor) -> bool:
    """Whether all products are of one type, so that no cast between them matters."""
    kind, dtype = x.device.type, _type_of(layer)
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != dtype:
        return False
    if type(layer) is nn.Linear:
        return True
    state: Any = getattr(layer.weight, "quant_state", None)
    if state is None or getattr(state, "packing_format_for_cpu", False):  # in another order, for evaluation
        return False
    return bool(x.dtype == dtype and tuple(state.shape) == (layer.out_features, layer.in_features))


def _norms(made: Weight, a: Tensor, b: Tensor, s: float) -> Tensor:
    """||W + s B A|| of each row, (out,) float32, by its parts: ||W||^2 + 2 s (W A^T . B) + s^2 (B A A^T . B)."""
    with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
        weight, a, b = made(), a.float(), b.float()
        crossed = (weight @ a.to(weight.dtype).T).float()
        pieces = weight.split(max(1, PIECE // weight.shape[1]))
        squares = torch.cat([torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32) for rows in pieces]).square()
        squares += ((2 * s * crossed + s * s * (b @ (a @ a.T))) * b).sum(1)
        return squares.clamp_(min=0).sqrt_()


def _updated(
    x: Tensor, dropped: Tensor | None, bias: Tensor | None, weight: Weight, a: Tensor, b: Tensor, s: float
) -> Tensor:
    updated: Tensor = Updated.apply(x, dropped, weight, bias, a, b, s)
    return updated


class Updated(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """y = x W^T + b + s x' A^T B^T, x' being x after dropout; gradients for x, x', A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, weight: Weight, bias: Tensor | None, a: Tensor, b: Tensor, s: float
    ) -> Tensor:
        """`x` (..., in), `dropped` its like, None: `x` itself; `a` (rank, in), `b` (out, rank)."""
        rows = x.reshape(-1, x.shape[-1])
        seen = rows if dropped is None else dropped.reshape(rows.shape)
        narrow_a, narrow_b = a.to(x.dtype), (b * s).to(x.dtype)
        low = seen @ narrow_a.T
        dense = weight()
        y = rows @ dense.T if bias is None else torch.addmm(bias.to(x.dtype), rows, dense.T)
        y.addmm_(low, narrow_b.T)
        ctx.save_for_backward(seen, narrow_a, narrow_b, low)
        ctx.weight, ctx.scaling, ctx.learning, ctx.drops = weight, s, (a.dtype, b.dtype), dropped is not None
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]  # torch is untyped here
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        seen, a, b, low = ctx.saved_tensors
        shape = (*grad.shape[:-1], seen.shape[-1])
        grad = grad.reshape(-1, grad.shape[-1])
        of_low = grad @ b
        of_x = grad @ ctx.weight() if ctx.needs_input_grad[0] else None
        of_dropped = None
        if ctx.drops:
            of_dropped = (of_low @ a).view(shape)
        elif of_x is not None:
            of_x.addmm_(of_low, a)
        of_a = (of_low.T @ seen).to(ctx.learning[0])
        of_b = (grad.T @ low).to(ctx.learning[1]).mul_(ctx.scaling)
        return None if of_x is None else of_x.view(shape), of_dropped, None, None, of_a, of_b, None
