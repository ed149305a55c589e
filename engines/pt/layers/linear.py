"""Linear layers laid out for the CPU ahead of time, and embeddings beside them.

Through torch alone a weight is reordered at every call, which is most of the time of a small batch. Three layouts:

- `WideningLinear`: weights that are bfloat16 values, as most checkpoints hold, stay bfloat16 in memory when the model
  computes in float32, and widen in registers: the same result for half of the memory and of the reading. Our C kernel.
- `DotLinear`: bfloat16 weights times inputs rounded to bfloat16, the result not rounded: the head of a bfloat16 model,
  and all of a model that `decoder.py` computes. Our C kernel.
- `PackedLinear`: everything else, by oneDNN.

Weights that are integers of 4 or 8 bits and scales stay that (`quantized_linear.py`).

A model in bfloat16 keeps to it where it counts for speed: in the weights, inputs and results of linear layers, and in
the cache. What runs from layer to layer, norms, positions and logits are float32 (`pack`).
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from engines.checkpoint.exact_head import ExactHead
from engines.checkpoint.integers import IntegersLinear, integers_of
from engines.checkpoint.quantize import let_go_of_file
from engines.pt.layers.kernel_linear import PLAIN, Grid, KernelLinear
from engines.pt.layers.pages import Pages
from engines.pt.layers.quantized import is_quantized
from engines.pt.layers.quantized_linear import QuantizedLinear

# Rows for which oneDNN chooses its layout: a typical decode batch. Other batches run on the same layout.
TYPICAL_ROWS = 32


class WideningLinear(KernelLinear):
    """y = x W^T + b in float32, W kept in bfloat16; (..., in_features) -> (..., out_features)."""

    def __init__(self, linear: nn.Linear, library: ctypes.CDLL, pages: Pages | None = None) -> None:
        packed = _packed(linear, library.packed_size, library.pack_weights, pages)
        super().__init__(linear, packed, Grid(*PLAIN), library, dots=False, wide=True)


class DotLinear(KernelLinear):
    """y = x W^T + b in float32, from x and W in bfloat16, where the CPU has an instruction for their products;
    (..., in_features), an even number, -> (..., out_features)."""

    def __init__(self, linear: nn.Linear, library: ctypes.CDLL, pages: Pages | None = None) -> None:
        packed = _packed(linear, library.dot_packed_size, library.pack_dots, pages)
        super().__init__(linear, packed, Grid(*PLAIN), library, dots=True, wide=True)


def _packed(linear: nn.Linear, size: Any, pack_into: Any, pages: Pages | None) -> Tensor:
    """The weights in bfloat16, as the functions of the kernel say and lay them out."""
    sizes = linear.in_features, linear.out_features
    weight = linear.weight.detach().bfloat16().contiguous()
    packed = (pages or Pages()).zeros([size(*sizes)], torch.bfloat16)
    pack_into(weight.data_ptr(), packed.data_ptr(), *sizes)
    return packed


class PackedLinear(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """y = x W^T + b with W prepacked; (..., in_features) -> (..., out_features), in W's dtype."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), TYPICAL_ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self._packed.dtype)
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._packed, self.bias, "none", [], "")
        return out


class ScaledEmbedding(nn.Embedding):  # type: ignore[misc]  # torch is untyped here
    """Rows of a table, each times a number, as Gemma has them."""

    def __init__(self, *sizes: int, scale: float, device: str) -> None:
        super().__init__(*sizes, device=device)
        self.scalar_embed_scale = scale

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.scalar_embed_scale


class WideningEmbedding(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Rows of a table kept in bfloat16, looked up as float32, times a number; (...) ids -> (..., embedding_dim).

    The number is rounded to the dtype of the model, as transformers does it; what it gives is not.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._exact_scale = getattr(embedding, "scalar_embed_scale", 1.0)
        self.scale = scale_of(embedding)
        self.weight = nn.Buffer(embedding.weight.detach().bfloat16(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight).float() * self.scale

    def plain(self) -> ScaledEmbedding:
        """A layer of the same sizes without weights, to pack again."""
        return ScaledEmbedding(*self.weight.shape, scale=self._exact_scale, device="meta")


def scale_of(module: nn.Module) -> float | None:
    """What a module multiplies rows of its table by; None: it is no embedding, or none that is known."""
    if type(module) is nn.Embedding:
        return 1.0
    if isinstance(module, nn.Embedding) and hasattr(module, "scalar_embed_scale"):
        return float(torch.tensor(module.scalar_embed_scale).to(module.weight.dtype))
    return module.scale if type(module) is WideningEmbedding else None


def pack(model: nn.Module, library: ctypes.CDLL | None, *, head: nn.Module | None = None, dots: bool = False) -> None:
    """Replace the plain linear and embedding layers of a model on a CPU; their original weights are dropped.
    Ones that another library keeps quantised stay, if not as integers. `dots`: all plain linear layers are to be
    `DotLinear`.

    Between the linear layers of a bfloat16 model everything is float32 from then on, at hardly any cost, where nothing
    else in it has a matrix of weights: experts, say, want their inputs in their weights' dtype.
    """
    packs, pages = _onednn_dtypes(), Pages()
    wide = head is not None and torch.bfloat16 in packs and _has_plain_matrices(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            embeds = isinstance(child, nn.Embedding) and scale_of(child) is not None
            whole = type(child) is IntegersLinear
            if not whole and (not (embeds or type(child) is nn.Linear) or child.weight.device.type != "cpu"):
                continue
            if library is not None and (found := integers_of(child)) is not None:
                dtype = child.dtype if whole else child.weight.dtype
                narrow = dtype is torch.bfloat16 and bool(library.has_quantized_dots())
                setattr(parent, name, QuantizedLinear(child, found, library, pages, dots=narrow, wide=wide))
                child.weight = None  # transformers gives torchao's layers a method of their own, so that they do not go
                continue
            if whole:  # there is no kernel
                child = child.plain()
                setattr(parent, name, child)
            if is_quantized(child):
                continue
            if wide and embeds:
                setattr(parent, name, WideningEmbedding(child))
            elif wide and (child is head or dots):
                setattr(parent, name, _with_wide_results(child, library, pages))
            elif library is not None and _is_bfloat16(child.weight):
                setattr(parent, name, WideningEmbedding(child) if embeds else WideningLinear(child, library, pages))
            elif type(child) is nn.Linear and child.weight.dtype in packs:
                setattr(parent, name, PackedLinear(child))
    if wide:
        for parameter in model.parameters():  # of norms
            parameter.data = parameter.data.float()
    let_go_of_file(model)


def _with_wide_results(linear: nn.Linear, library: ctypes.CDLL | None, pages: Pages) -> nn.Module:
    """Results in float32 of bfloat16 weights, where there is a kernel for them."""
    if library is None:
        return PackedLinear(linear)
    dots = library.has_dots() and linear.in_features % 2 == 0
    return DotLinear(linear, library, pages) if dots else WideningLinear(linear, library, pages)


def _has_plain_matrices(model: nn.Module) -> bool:
    """Whether a model is in bfloat16 on a CPU, and all its matrices of weights are those of plain layers."""
    kinds = (nn.Linear, ExactHead)
    plain = {id(m.weight) for m in model.modules() if type(m) in kinds or scale_of(m) is not None}
    return all(
        p.dtype is torch.bfloat16 and p.device.type == "cpu" and (p.dim() == 1 or id(p) in plain)
        for p in model.parameters()
    )


def _is_bfloat16(weight: Tensor) -> bool:
    """Whether float32 weights are bfloat16 values, every one."""
    return weight.dtype is torch.float32 and torch.equal(weight.bfloat16().float(), weight)


def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    if not torch.backends.mkldnn.is_available():
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)
