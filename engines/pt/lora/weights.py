"""The weights of one adapter, read from its folder into host memory."""

import logging
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engines.adapters.spec import WEIGHTS, AdapterSpec, LoraModule
from engines.errors import InvalidAdapter
from engines.pt.lora.low_rank import Matrices

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """One adapter in host memory, in the form in which it goes into a slot. Modules by their path in the model."""

    linears: dict[str, Matrices]
    embeddings: dict[str, Matrices]  # A^T (num_embeddings, rank), scaled B^T (rank, embedding_dim)
    saved: dict[str, Tensor]  # in place of the module's own weight
    head: Tensor | None = None  # (labels, hidden_size), float32


def read_weights(spec: AdapterSpec, dtype: torch.dtype) -> AdapterWeights:
    """Read a checked adapter from its folder. Raises InvalidAdapter where a value is not finite or the file is gone."""
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(spec.folder / WEIGHTS, framework="pt") as file:

            def read(name: str, scale: float = 1.0, dtype: torch.dtype = dtype) -> Tensor:
                # In memory of its own, where the file's tensor would be read when it is used.
                found = file.get_tensor(name)
                tensors[name] = found.to(dtype, copy=True) if scale == 1.0 else (found.float() * scale).to(dtype)
                return tensors[name]

            def up(module: LoraModule) -> Tensor:
                return read(module.b, module.scale).T

            weights = AdapterWeights(
                linears={path: (read(m.a), up(m)) for path, m in spec.linears.items()},
                embeddings={
                    path: (read(m.a).T.contiguous(), up(m).contiguous()) for path, m in spec.embeddings.items()
                },
                saved={path: read(name) for path, name in spec.saved.items()},
                head=None if spec.head_weight is None else read(spec.head_weight, dtype=torch.float32),
            )
    except (OSError, SafetensorError) as error:
        log.warning("%s cannot be read: %s", spec.folder / WEIGHTS, error)
        raise InvalidAdapter(f"{WEIGHTS} cannot be read", param=WEIGHTS) from error
    # In double, finite values have a finite sum.
    sums = torch.stack([tensor.sum(dtype=torch.float64) for tensor in tensors.values()])
    for (name, tensor), finite in zip(tensors.items(), sums.isfinite().tolist(), strict=True):
        if not finite:
            message = f"{name} has values that are not finite numbers in {str(tensor.dtype).removeprefix('torch.')}"
            raise InvalidAdapter(message, param=name)
    return weights
