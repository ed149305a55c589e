"""GPTQ: weights are rounded column by column, and what is left of the row makes up for each error (Frantar et al. 2022,
arXiv:2210.17323). Written in the form that AutoGPTQ had first, which vLLM, LMDeploy and transformers read."""

from typing import TYPE_CHECKING, Any

from training.exports.blocks import Block, Inputs
from training.exports.grid import Grid, fit_grid, groups_of, pack

if TYPE_CHECKING:
    from torch import Tensor

DAMPING = 0.01
"""Of the mean of the Hessian's diagonal, added to it."""
COLUMNS = 128
"""Columns after which the errors are carried to all that follow."""


def settings(bits: int, group: int) -> dict[str, Any]:
    """`quantization_config` of config.json."""
    return {
        "quant_method": "gptq", "bits": bits, "group_size": group, "sym": True, "desc_act": False, "lm_head": False,
        "damp_percent": DAMPING, "true_sequential": False, "checkpoint_format": "gptq",
    }  # fmt: skip


def quantize_block(block: Block, *, bits: int, group: int) -> dict[str, "Tensor"]:
    """Change the block's linear layers to what is left of their weights; return these as they are saved, by names."""
    saved: dict[str, Tensor] = {}
    inputs = block.inputs()
    for path, layer in block.linears().items():
        size = layer.in_features if group == -1 else group
        weight = layer.weight.data.float()
        numbers, grid = rounded(weight, inputs[path], bits=bits, group=size)
        groups = groups_of(layer.in_features, size).to(weight.device)
        layer.weight.data = grid.meant(numbers, groups).to(layer.weight.dtype)
        tensors = packed(numbers, grid)
        if layer.bias is not None:
            tensors["bias"] = layer.bias.data
        saved |= {f"{block.path}.{path}.{name}": tensor for name, tensor in tensors.items()}
    return saved


def rounded(weight: "Tensor", inputs: Inputs, *, bits: int, group: int) -> tuple["Tensor", Grid]:
    """Numbers for `weight` (rows, columns) in float32, and their grid.

    Columns go in the order of their importance, with the scales of the groups that they are saved in.
    """
    import torch

    hessian = inputs.gram / max(inputs.count, 1)
    idle = hessian.diagonal() == 0
    weight = weight.masked_fill(idle, 0)
    hessian.diagonal()[idle] = 1
    grid = fit_grid(weight, hessian.diagonal(), bits=bits, group=group, symmetric=True)
    scale = grid.scale.half().float()  # as it is saved
    grid = Grid(scale.clamp(min=2**-24), grid.zero, bits, group)
    order = hessian.diagonal().argsort(descending=True)
    groups = groups_of(weight.shape[1], group).to(weight.device)[order]
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    inverse = torch.linalg.cholesky(inverse, upper=True)
    left, numbers = weight[:, order], torch.empty_like(weight)
    for start in range(0, weight.shape[1], COLUMNS):
        end = min(start + COLUMNS, weight.shape[1])
        errors = torch.empty_like(left[:, start:end])
        for at in range(start, end):
            one = groups[at : at + 1]
            numbers[:, at : at + 1] = grid.round(left[:, at : at + 1], one)
            error = (left[:, at : at + 1] - grid.meant(numbers[:, at : at + 1], one)) / inverse[at, at]
            left[:, at + 1 : end] -= error @ inverse[at : at + 1, at + 1 : end]
            errors[:, at - start] = error[:, 0]
        left[:, end:] -= errors @ inverse[start:end, end:]
    return numbers[:, order.argsort()], grid


def packed(numbers: "Tensor", grid: Grid) -> dict[str, "Tensor"]:
    """A layer's tensors. Zeros are saved less 1, as the form has them."""
    import torch

    return {
        "qweight": pack(numbers, grid.bits).T.contiguous(),
        "qzeros": pack((grid.zero - 1).T.contiguous(), grid.bits),
        "scales": grid.scale.T.contiguous().to(torch.float16),
        "g_idx": groups_of(numbers.shape[1], grid.group).to(torch.int32),
    }
