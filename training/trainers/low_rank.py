"""LoRA and DoRA beside a dense layer in one piece: PEFT's numbers, with fewer passes over the rows.

PEFT adds, casts and scales in steps of their own, each of which reads and writes a matrix as large as the layer's
input or result. Here the update is added by the product that makes it, forwards and backwards. For DoRA (Liu et al.
2024, arXiv:2402.09353, equation 5) PEFT also makes the changed weights anew in every pass, to take their norms; here
the norms come of the products of the small matrices.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def in_one_piece(model: nn.Module) -> None:
    """Have the LoRA layers of `model` compute so, where they are beside plain dense layers. Whatever else there is, as
    an adapter that is merged or switched off, is left to PEFT, call by call."""
    for module in model.modules():
        if type(module) is Linear and _is_plain(module.base_layer):
            module.__class__ = OnePiece


def _is_plain(layer: Any) -> bool:
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter


class OnePiece(Linear):  # type: ignore[misc]  # PEFT is untyped here
    """PEFT's layer, whose forward pass is `Updated`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        name = None if args or kwargs else self._only_adapter(x)
        if name is None:
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        weight, bias = self.base_layer.weight, self.base_layer.bias
        given = weight, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        x = x.to(weight.dtype)
        if name not in self.lora_variant:
            return _updated(x, self.lora_dropout[name](x) if self._drops(name) else None, bias, *given)
        scale = self.lora_magnitude_vector[name].weight / _norms(*given)
        y = _updated(x, None, None, *given) * scale.to(weight.dtype)
        return y if bias is None else y + bias

    def _only_adapter(self, x: Tensor) -> str | None:
        """The name of the one adapter in use; None where PEFT's own forward pass has to compute it."""
        weight, bias = self.base_layer.weight, self.base_layer.bias
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1 or _computed_in(x, weight) != weight.dtype:
            return None
        name: str = names[0]
        variant = self.lora_variant.get(name)
        is_known = variant is None or (type(variant) is DoraLinearVariant and not self._drops(name))
        base_learns = weight.requires_grad or (bias is not None and bias.requires_grad)
        return name if is_known and not base_learns and self.lora_B[name].bias is None else None

    def _drops(self, name: str) -> bool:
        return self.training and not isinstance(self.lora_dropout[name], nn.Identity)


def _computed_in(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type that products are computed in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _norms(weight: Tensor, a: Tensor, b: Tensor, s: float) -> Tensor:
    """||W + s B A|| of each row, (out,) float32, by its parts: ||W||^2 + 2 s (W A^T . B) + s^2 (B A A^T . B)."""
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        a, b = a.float(), b.float()
        crossed = (weight @ a.to(weight.dtype).T).float()
        squares = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).square()
        squares += ((2 * s * crossed + s * s * (b @ (a @ a.T))) * b).sum(1)
        return squares.clamp_(min=0).sqrt_()


def _updated(
    x: Tensor, dropped: Tensor | None, bias: Tensor | None, weight: Tensor, a: Tensor, b: Tensor, s: float
) -> Tensor:
    updated: Tensor = Updated.apply(x, dropped, weight, bias, a, b, s)
    return updated


class Updated(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """y = x W^T + b + s x' A^T B^T, x' being x after dropout; gradients for x, x', A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float
    ) -> Tensor:
        """`x` (..., in), `dropped` its like, None: `x` itself; `weight` (out, in), `a` (rank, in), `b` (out, rank)."""
        rows = x.reshape(-1, x.shape[-1])
        seen = rows if dropped is None else dropped.reshape(rows.shape)
        narrow_a, narrow_b = a.to(x.dtype), (b * s).to(x.dtype)
        low = seen @ narrow_a.T
        y = rows @ weight.T if bias is None else torch.addmm(bias.to(x.dtype), rows, weight.T)
        y.addmm_(low, narrow_b.T)
        ctx.save_for_backward(seen, weight, narrow_a, narrow_b, low)
        ctx.scaling, ctx.learning, ctx.drops = s, (a.dtype, b.dtype), dropped is not None
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]  # torch is untyped here
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        seen, weight, a, b, low = ctx.saved_tensors
        shape = (*grad.shape[:-1], seen.shape[-1])
        grad = grad.reshape(-1, grad.shape[-1])
        of_low = grad @ b
        of_x = grad @ weight if ctx.needs_input_grad[0] else None
        of_dropped = None
        if ctx.drops:
            of_dropped = (of_low @ a).view(shape)
        elif of_x is not None:
            of_x.addmm_(of_low, a)
        of_a = (of_low.T @ seen).to(ctx.learning[0])
        of_b = (grad.T @ low).to(ctx.learning[1]).mul_(ctx.scaling)
        return None if of_x is None else of_x.view(shape), of_dropped, None, None, of_a, of_b, None
