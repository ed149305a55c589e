"""GPTQ (Frantar et al. 2022, arXiv:2210.17323), in the form that AutoGPTQ had first, which vLLM, LMDeploy and
transformers read."""

from typing import TYPE_CHECKING, Any

from training.exports.blocks import Block
from training.exports.grid import Grid, groups_of, pack
from training.exports.rounding import DAMPINGS, round_block

if TYPE_CHECKING:
    from torch import Tensor


def settings(bits: int, group: int) -> dict[str, Any]:
    """`quantization_config` of config.json."""
    return {
        "quant_method": "gptq", "bits": bits, "group_size": group, "sym": True, "desc_act": False, "lm_head": False,
        "damp_percent": DAMPINGS[0], "true_sequential": False, "checkpoint_format": "gptq",
    }  # fmt: skip


def quantize_block(block: Block, *, bits: int, group: int) -> dict[str, "Tensor"]:
    """Change the block's linear layers to what is left of their weights; return these as they are saved, by names."""
    weights = {path: layer.weight.data.float() for path, layer in block.linears().items()}
    return round_block(block, weights, block.inputs(), packed, bits=bits, group=group, symmetric=True)


def packed(numbers: "Tensor", grid: Grid) -> dict[str, "Tensor"]:
    """A layer's tensors. Zeros are saved less 1, as the form has them."""
    import torch

    return {
        "qweight": pack(numbers, grid.bits).T.contiguous(),
        "qzeros": pack((grid.zero - 1).T.contiguous(), grid.bits),
        "scales": grid.scale.T.contiguous().to(torch.float16),
        "g_idx": groups_of(numbers.shape[1], grid.group).to(torch.int32),
    }
