"""How many bytes the weights of a model take in memory, those too that a library keeps quantised."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from engines.checkpoint.integers import IntegersLinear


def bytes_of_weights(model: nn.Module) -> int:
    """Integers that are read as they are wanted count as a byte each, which is the most that they take once packed."""
    seen: dict[int, int] = {}
    for module in model.modules():
        if type(module) is IntegersLinear:
            seen[id(module)] = module.in_features * module.out_features
        for tensor in _tensors(module):
            storage = tensor.untyped_storage()
            seen[storage._cdata] = storage.nbytes()
    return sum(seen.values())


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """What the module holds itself, each tensor plain."""
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        yield from _plain(tensor)
        yield from _scales_of_bitsandbytes(tensor)
    if isinstance(meta := getattr(module, "meta", None), dict):  # of HQQ
        yield from (each for each in meta.values() if isinstance(each, Tensor))


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor, or those that it is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _plain(getattr(tensor, name))


def _scales_of_bitsandbytes(tensor: Any) -> Iterator[Tensor]:
    state = getattr(tensor, "quant_state", None)
    while state is not None:
        yield from (each for each in (state.absmax, state.code, state.offset) if isinstance(each, Tensor))
        state = state.state2
    yield from (each for each in (getattr(tensor, "SCB", None),) if isinstance(each, Tensor))
