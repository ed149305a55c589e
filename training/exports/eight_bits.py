"""fp8 and w8a8: weights of 8 bits with a scale for each row; activations are rounded while the model runs, with a scale
for each token. Written as compressed-tensors has them (vLLM's form, which llm-compressor writes)."""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["fp8", "w8a8"]


def settings(kind: Kind) -> dict[str, Any]:
    """`quantization_config` of config.json."""
    shared = {"num_bits": 8, "type": "float" if kind == "fp8" else "int", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized" if kind == "fp8" else "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": shared | {"strategy": "channel", "dynamic": False},
                "input_activations": shared | {"strategy": "token", "dynamic": True},
            }
        },
    }


def quantize(weight: "Tensor", kind: Kind) -> dict[str, "Tensor"]:
    """A layer's `weight` (rows, columns) as it is saved: its numbers, and the scale of each row (rows, 1)."""
    import torch

    values = weight.float()
    most = torch.finfo(torch.float8_e4m3fn).max if kind == "fp8" else 127.0
    scale = (values.abs().amax(1, keepdim=True) / most).clamp(min=1e-12).to(weight.dtype)
    numbers = (values / scale.float()).clamp(-most, most)
    rounded = numbers.to(torch.float8_e4m3fn) if kind == "fp8" else numbers.round().to(torch.int8)
    return {"weight": rounded, "weight_scale": scale}
