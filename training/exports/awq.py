"""AWQ: inputs that are large are made smaller and their weights larger, so that rounding costs these less (Lin et al.
2023, arXiv:2306.00978). Written in AutoAWQ's GEMM form, which vLLM, LMDeploy and transformers read.

What the search looks at is the error of the layers' outputs: with the sum of x xᵀ over all inputs x, that of a change D
of the weights is the trace of D (sum x xᵀ) Dᵀ. The scaled weights are then rounded as GPTQ rounds: its numbers fit this
form, and cost less than the nearest ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.errors import UnsupportedModel
from training.exports.blocks import Block, Inputs
from training.exports.grid import Grid, fit_grid, groups_of, pack, saved
from training.exports.rounding import round_block

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BITS = 4
STEPS = 20
"""Exponents that are told apart, between 0 (nothing is scaled) and 1."""
STRIDES = (4, 2, 1)
"""How far apart those are that are tried, first everywhere, then around the best."""
ROWS = 256
"""Of a layer, about: as many tell its error well enough."""
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
    weights = {path: layer.weight.data.float() for path, layer in block.linears().items()}
    for shared in BLOCKS[model_type]:
        _scale(block, shared, weights, inputs, group, stored)
    return round_block(block, weights, inputs, packed, bits=BITS, group=group, symmetric=False)


def _scale(
    block: Block,
    shared: Shared,
    weights: dict[str, "Tensor"],
    inputs: dict[str, Inputs],
    group: int,
    stored: "torch.dtype",
) -> None:
    """Multiply the columns of the layers' `weights` by what serves best, and divide what makes their inputs by it."""
    given, source = inputs[shared.layers[0]], block.module.get_submodule(shared.source)
    if len(source.weight) != len(given.magnitudes):  # values that several heads share
        return
    scale = best_scale([weights[path] for path in shared.layers], given, group=group)
    if shared.source in weights:
        weights[shared.source] = weights[shared.source] / scale[:, None]
    else:  # a norm's: what saving makes of it is made up for
        before = source.weight.data.float()
        divided = (before / scale).to(stored).float()
        scale = (before / divided).where(divided != 0, scale)
        source.weight.data = divided.to(source.weight.dtype)
    if getattr(source, "bias", None) is not None:
        source.bias.data = (source.bias.data.float() / scale).to(source.bias.dtype)
    divided_inputs = given.divided(scale)
    for path in shared.layers:
        weights[path] = weights[path] * scale
        inputs[path] = divided_inputs


def best_scale(weights: Sequence["Tensor"], inputs: Inputs, *, group: int) -> "Tensor":
    """(columns,): by what to multiply the columns of `weights`, each (rows, columns), before they are rounded."""
    typical = (inputs.magnitudes / max(inputs.count, 1)).clamp(min=1e-4)
    samples = [weight[:: max(1, len(weight) // ROWS)] for weight in weights]

    def scale(step: int) -> "Tensor":
        tried = typical ** (step / STEPS)
        return (tried / (tried.max() * tried.min()).sqrt()).clamp(min=1e-4)

    errors: dict[int, float] = {}
    places = range(0, STEPS, STRIDES[0])
    for stride in STRIDES:
        for step in {*places} - errors.keys():
            errors[step] = sum(_error(each, scale(step), inputs, group) for each in samples)
        best = min(errors, key=errors.__getitem__)
        places = range(max(0, best - stride // 2), min(STEPS, best + stride // 2 + 1), max(1, stride // 2))
    return scale(best)


def _error(weight: "Tensor", scale: "Tensor", inputs: Inputs, group: int) -> float:
    """Squared error of the outputs, summed over all inputs."""
    size = weight.shape[1] if group == -1 else group
    groups = groups_of(weight.shape[1], size).to(weight.device)
    importance = inputs.gram.diagonal() / scale.square()
    grid = saved(fit_grid(weight * scale, importance, bits=BITS, group=size, symmetric=False, shrinks=1))
    change = grid.meant(grid.round(weight * scale, groups), groups) / scale - weight
    return float(((change @ inputs.gram) * change).sum())


def packed(numbers: "Tensor", grid: Grid) -> dict[str, "Tensor"]:
    """A layer's tensors."""
    import torch

    return {
        "qweight": pack(numbers.T.contiguous(), BITS, ORDER),
        "qzeros": pack(grid.zero.T.contiguous(), BITS, ORDER),
        "scales": grid.scale.T.contiguous().to(torch.float16),
    }
