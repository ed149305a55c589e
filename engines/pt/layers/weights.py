"""Other weights in the place of those that a model was loaded with, whose plain layers may have been packed."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from engines.errors import EngineFailure
from engines.pt.layers.linear import DotLinear, PackedLinear, WideningEmbedding, WideningLinear
from engines.pt.layers.quantized_linear import QuantizedLinear


def write_weights(model: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give every layer its weights anew, in `dtype`. Packed layers become plain ones, which can be packed again.

    `weights`: by their names in the model before it was packed; those that are tied by each of their names. Raises
    EngineFailure where one is missing or has another shape; the model is then of no use.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, WideningLinear | DotLinear | PackedLinear | QuantizedLinear):
            plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        elif isinstance(module, WideningEmbedding):
            plain = module.plain()
        else:
            _write(module, path, weights, dtype)
            continue
        _write(plain, path, weights, dtype)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, plain)


def _write(module: nn.Module, path: str, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write the parameters of one module, without those of the modules in it."""
    for leaf, parameter in list(module.named_parameters(recurse=False)):
        name = f"{path}.{leaf}" if path else leaf
        weight = weights.get(name)
        if weight is None or weight.shape != parameter.shape:
            found = "no such weight is given" if weight is None else f"its shape is {tuple(weight.shape)}"
            raise EngineFailure(f"{name} is {tuple(parameter.shape)}, and {found}")
        device = weight.device if parameter.device.type == "meta" else parameter.device
        written = weight.detach().to(device, dtype, copy=True)
        if parameter.device.type == "meta":
            setattr(module, leaf, nn.Parameter(written, requires_grad=False))
        else:
            parameter.data = written
