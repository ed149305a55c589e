"""AWQ: inputs that are large are made smaller and their weights larger, so that rounding costs these less (Lin et al.
2023, arXiv:2306.00978). Written in AutoAWQ's GEMM form, which vLLM, LMDeploy and transformers read.

What the search looks at is the error of the layers' outputs: with the sum of x xᵀ over all inputs x, that of a change D
of the weights is the trace of D (sum x xᵀ) Dᵀ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.errors import UnsupportedModel
from training.exports.blocks import Block, Inputs
from training.exports.grid import Grid, fit_grid, groups_of, pack

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BITS = 4
STEPS = 20
"""Exponents that are tried, between 0 (nothing is scaled) and 1."""
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Columns of eight in the order in which a word has them."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Layers with the same inputs, and what makes these: dividing its weights divides them."""

    layers: tuple[str, ...]
    source: str


LLAMA = (
    Shared(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
    Shared(("self_attn.o_proj",), "self_attn.v_proj"),
    Shared(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
    Shared(("mlp.down_proj",), "mlp.up_proj"),
)
BLOCKS = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), LLAMA)
"""Type of a model -> what its blocks are made of."""


def settings(group: int) -> dict[str, Any]:
    """`quantization_config` of config.json."""
    return {
        "quant_method": "awq", "bits": BITS, "group_size": group, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": None,
    }  # fmt: skip


def check_type(model_type: str) -> None:
    """Raises UnsupportedModel where it is not known what makes the inputs of each layer."""
    if model_type not in BLOCKS:
        known = ", ".join(BLOCKS)
        raise UnsupportedModel(
            f"awq knows the blocks of {known}, not of {model_type}: choose gptq", param="quant_method"
        )


def quantize_block(block: Block, model_type: str, *, group: int, stored: "torch.dtype") -> dict[str, "Tensor"]:
    """Change the block's weights to what is left of them; return those of its linear layers as they are saved.
    `stored`: the type that its other weights are saved in."""
    inputs = block.inputs()
    for shared in BLOCKS[model_type]:
        _scale(block, shared, inputs, group, stored)
    saved: dict[str, Tensor] = {}
    for path, layer in block.linears().items():
        size = layer.in_features if group == -1 else group
        weight = layer.weight.data.float()
        grid = _saved(fit_grid(weight, inputs[path].gram.diagonal(), bits=BITS, group=size, symmetric=False))
        groups = groups_of(layer.in_features, size).to(weight.device)
        numbers = grid.round(weight, groups)
        layer.weight.data = grid.meant(numbers, groups).to(layer.weight.dtype)
        tensors = packed(numbers, grid) | ({} if layer.bias is None else {"bias": layer.bias.data})
        saved |= {f"{block.path}.{path}.{name}": tensor for name, tensor in tensors.items()}
    return saved


def _scale(block: Block, shared: Shared, inputs: dict[str, Inputs], group: int, stored: "torch.dtype") -> None:
    """Multiply the columns of the layers by what serves best, and divide what makes their inputs by it."""
    layers = [block.module.get_submodule(path) for path in shared.layers]
    source = block.module.get_submodule(shared.source)
    if len(source.weight) != layers[0].in_features:  # values that several heads share
        return
    given = inputs[shared.layers[0]]
    scale = best_scale([layer.weight.data.float() for layer in layers], given, group=group)
    before = source.weight.data.float()
    divided = before / scale.view(-1, *[1] * (before.dim() - 1))
    if before.dim() == 1:  # a norm's: what saving makes of it is made up for
        divided = divided.to(stored).float()
        scale = (before / divided).where(divided != 0, scale)
    source.weight.data = divided.to(source.weight.dtype)
    for layer in layers:
        layer.weight.data = (layer.weight.data.float() * scale).to(layer.weight.dtype)
    if getattr(source, "bias", None) is not None:
        source.bias.data = (source.bias.data.float() / scale).to(source.bias.dtype)
    for path in shared.layers:
        inputs[path].gram = inputs[path].gram / (scale[:, None] * scale)
        inputs[path].magnitudes = inputs[path].magnitudes / scale


def best_scale(weights: Sequence["Tensor"], inputs: Inputs, *, group: int) -> "Tensor":
    """(columns,): by what to multiply the columns of `weights`, each (rows, columns), before they are rounded."""
    import torch

    typical = (inputs.magnitudes / max(inputs.count, 1)).clamp(min=1e-4)
    best, scale = torch.inf, torch.ones_like(typical)
    for step in range(STEPS):
        tried = typical ** (step / STEPS)
        tried = (tried / (tried.max() * tried.min()).sqrt()).clamp(min=1e-4)
        error = sum(_error(weight, tried, inputs, group) for weight in weights)
        if error < best:
            best, scale = error, tried
    return scale


def _error(weight: "Tensor", scale: "Tensor", inputs: Inputs, group: int) -> float:
    """Squared error of the outputs, summed over all inputs."""
    size = weight.shape[1] if group == -1 else group
    groups = groups_of(weight.shape[1], size).to(weight.device)
    importance = inputs.gram.diagonal() / scale.square()
    grid = _saved(fit_grid(weight * scale, importance, bits=BITS, group=size, symmetric=False, shrinks=1))
    change = grid.meant(grid.round(weight * scale, groups), groups) / scale - weight
    return float(((change @ inputs.gram) * change).sum())


def _saved(grid: Grid) -> Grid:
    """With scales as they are saved, in float16."""
    return Grid(grid.scale.half().float().clamp(min=2**-24), grid.zero, grid.bits, grid.group)


def packed(numbers: "Tensor", grid: Grid) -> dict[str, "Tensor"]:
    """A layer's tensors."""
    import torch

    return {
        "qweight": pack(numbers.T.contiguous(), BITS, ORDER),
        "qzeros": pack(grid.zero.T.contiguous(), BITS, ORDER),
        "scales": grid.scale.T.contiguous().to(torch.float16),
    }
