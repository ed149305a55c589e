"""Linear layers with their weights laid out for the CPU's matrix kernels ahead of time (oneDNN prepacking).

Through torch alone oneDNN reorders a weight at every call, which is most of the time of a small batch.
"""

import torch
from torch import Tensor, nn

# Rows for which the layout is chosen: a typical decode batch. Other batches run on the same layout.
TYPICAL_ROWS = 32


class PackedLinear(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """y = x W^T + b with W prepacked; (..., in_features) -> (..., out_features), in W's dtype."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), TYPICAL_ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._packed, self._bias, "none", [], "")
        return out


def pack_linears(model: nn.Module) -> None:
    """Replace every plain nn.Linear on a CPU in a dtype that oneDNN computes; the original weights are dropped."""
    if not torch.backends.mkldnn.is_available():
        return
    half = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (
                type(child) is nn.Linear
                and child.weight.device.type == "cpu"
                and child.weight.dtype in (torch.float32, half)
            ):
                setattr(parent, name, PackedLinear(child))
