"""Adapters within layers (Houlsby et al.). The reference does not document these parameters, but has them by these
names."""

from typing import Annotated, Literal

from pydantic import Field

from engines.params.about import About
from engines.params.base import Params

Activation = Literal[
    "gelu", "gelu_new", "gelu_pytorch_tanh", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6",
    "sigmoid", "silu", "tanh",
]  # fmt: skip


class HoulsbyParams(Params):
    """Adapters behind attention and MLP of each layer, with train_type adapter."""

    adapter_length: Annotated[int, About(most=4096)] = Field(128, ge=1)
    """Width of the bottleneck: what the adapter can hold, and its size."""
    adapter_act: Activation = "gelu"
    """Activation function between its two matrices, by transformers' name."""
