"""Weights of linear layers that are kept as integers of 4 or 8 bits, whichever program rounded them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engines.checkpoint.spans import spans

MOST = {4: (0, 15), 8: (-128, 127)}
"""The least and the largest code."""
CENTRE = {4: 8, 8: 0}
"""The zero of a group that has none of its own."""
LARGEST_GROUP = 128


@dataclass(frozen=True, slots=True)
class Integers:
    """scale * (code - zero) + offset, each of these one for a group of neighbours in an output's inputs; tensors are
    contiguous."""

    bits: int
    codes: Tensor
    """(outputs, inputs) int8: 0 to 15 of 4 bits, signed of 8."""
    scales: Tensor
    """(outputs, groups) float32."""
    zeros: Tensor | None = None
    """(outputs, groups) uint8, of 4 bits only. None: `CENTRE`."""
    offsets: Tensor | None = None
    """(outputs, groups) float32. None: 0."""

    @property
    def group(self) -> int:
        """Inputs of a group."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(outputs, inputs)."""
        found = torch.empty_like(self.codes, dtype=dtype)
        for span, weights in self.some_weights():
            found[span] = weights
        return found

    def some_weights(self) -> Iterator[tuple[slice, Tensor]]:
        """Those of some outputs after others: which, and (outputs, inputs) float32."""
        for span in spans(*self.codes.shape):
            weights = self.codes[span].unflatten(1, (-1, self.group)).float()
            weights -= CENTRE[self.bits] if self.zeros is None else self.zeros[span][..., None]
            weights *= self.scales[span][..., None]
            if self.offsets is not None:
                weights += self.offsets[span][..., None]
            yield span, weights.flatten(1)

    def like(self, outputs: int) -> "Integers":
        """Room for those of so many outputs, of the same layer."""
        return self._each(lambda tensor: tensor.new_empty(outputs, tensor.shape[1]))

    def write(self, span: slice, some: "Integers") -> None:
        """Have these for some of the outputs."""
        for whole, part in zip(self._tensors, some._tensors, strict=True):
            if whole is not None:
                whole[span] = part

    def reordered(self, move: Callable[[Tensor], Tensor]) -> "Integers":
        """With the outputs where `move` has them."""
        return self._each(move)

    @property
    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.codes, self.scales, self.zeros, self.offsets

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Integers":
        codes, scales, zeros, offsets = (None if each is None else change(each) for each in self._tensors)
        assert codes is not None and scales is not None, "there are always some"
        return Integers(self.bits, codes, scales, zeros, offsets)


class IntegersLinear(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A linear layer that keeps integers, wherever they lie, and makes weights of them each time it is called: what is
    loaded, until a kernel packs it."""

    def __init__(self, layer: nn.Linear, read: Callable[[], Integers]) -> None:
        """`read` gives the integers in place of the weights of `layer`."""
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.dtype, self.bias, self.integers = layer.weight.dtype, layer.bias, read

    def forward(self, x: Tensor) -> Tensor:
        found = x.new_empty(*x.shape[:-1], self.out_features)
        for span, weights in self.integers().some_weights():
            found[..., span] = linear(x, weights.to(x.dtype), None if self.bias is None else self.bias[span])
        return found

    def plain(self) -> nn.Linear:
        """The layer with its weights."""
        layer = nn.Linear(self.in_features, self.out_features, device="meta", bias=False)
        layer.weight = nn.Parameter(self.integers().weights(self.dtype), requires_grad=False)
        layer.bias = self.bias
        return layer


def hollow(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """In place of weights that nobody is to see: it takes no memory."""
    return torch.zeros(1, dtype=dtype).expand(shape)


def keep_integers(model: nn.Module) -> None:
    """Put an `IntegersLinear` in the place of each layer that has what reads its integers, as `integers`."""
    for path, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and (read := vars(layer).get("integers")) is not None:
            model.set_submodule(path, IntegersLinear(layer, read))


def integers(bits: int, signed: Tensor, scales: Tensor, zeros: Tensor) -> Integers | None:
    """Those of `signed` codes (outputs, inputs) around 0, and of scales and zeros (outputs, groups); fewer bits than 4
    are kept in 4. None: there is no place for them, as for 8 bits with zeros, a scale for all outputs, or groups that
    are no multiple of four inputs."""
    bits = max(bits, 4)
    if bits not in MOST or scales.dim() != 2 or len(scales) != len(signed) or signed.shape[1] % scales.shape[1]:
        return None
    group = kernel_group(signed.shape[1] // scales.shape[1])
    codes, zeros = signed + CENTRE[bits], zeros + CENTRE[bits]
    centred = bool((zeros == CENTRE[bits]).all())
    if group is None or (not centred and bits == 8):
        return None
    for each in (codes, zeros):
        if each.min() < MOST[bits][0] or each.max() > MOST[bits][1]:
            return None
    times = signed.shape[1] // scales.shape[1] // group
    scales, zeros = (each.repeat_interleave(times, 1) for each in (scales.float(), zeros.to(torch.uint8)))
    return Integers(
        bits, codes.to(torch.int8).contiguous(), scales.contiguous(), None if centred else zeros.contiguous()
    )


def integers_of(layer: Any) -> Integers | None:
    """The integers of a linear layer: those that our loading has kept, or torchao's. None: it has none."""
    if type(layer) is IntegersLinear:
        return layer.integers()
    if type(layer) is not nn.Linear:
        return None
    weight = layer.weight
    bits = {"Int8Tensor": 8, "IntxUnpackedToInt8Tensor": 4}.get(type(weight).__name__)
    if bits is None or not type(weight).__module__.startswith("torchao."):
        return None
    if getattr(weight, "target_dtype", torch.int4) is not torch.int4 or _rounds_inputs(weight):
        return None
    return integers(bits, weight.qdata, weight.scale, weight.zero_point)


def integers_behind(weight: Tensor, bits: int, scales: Tensor, zeros: Tensor | None) -> Integers | None:
    """Those that a weight (outputs, inputs) was made of by these scales and zeros (outputs, groups), however it was
    rounded afterwards; None where it was not, or there is no place for them."""
    if scales.dim() != 2 or weight.shape[1] % scales.shape[1]:
        return None
    zeros = torch.zeros_like(scales, dtype=torch.int32) if zeros is None else zeros.int()
    steps = weight.float().unflatten(1, (scales.shape[1], -1)) / scales.float()[..., None]
    signed = (steps.nan_to_num().round() + zeros[..., None]).flatten(1).int()
    found = integers(bits, signed, scales, zeros)
    close = found is not None and torch.allclose(found.weights(), weight.float(), rtol=2**-7, atol=0)
    return found if close else None


def _rounds_inputs(weight: Any) -> bool:
    """Whether torchao's weight has the layer's inputs rounded too."""
    return any(getattr(weight, name, None) is not None for name in ("act_quant_kwargs", "activation_quantization"))


def kernel_group(size: int) -> int | None:
    """How many inputs share a scale in the kernel, so that groups of `size` are some of these."""
    return max((each for each in range(4, LARGEST_GROUP + 1, 4) if size % each == 0), default=None)
