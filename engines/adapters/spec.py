"""The parts of a PEFT adapter, once its files have been checked."""

from dataclasses import dataclass
from pathlib import Path

from engines.types import Head

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
"""The configuration of the model with the adapter, where it brings a head: how many labels there are, and which."""
INSERTED_CONFIG, INSERTED_WEIGHTS = "inserted_config.json", "inserted_model.safetensors"
"""What stands in their place beside modules that were put into a model, which are no adapter of PEFT's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraModule:
    """The low-rank update of one module: delta W = scale * B A (Hu et al. 2021, arXiv:2106.09685, section 4.1)."""

    a: str
    """Name of the tensor A: (rank, in_features); of an embedding (rank, num_embeddings)."""
    b: str
    """Name of the tensor B: (out_features, rank); of an embedding (embedding_dim, rank)."""
    rank: int
    scale: float
    """alpha / rank, or alpha / sqrt(rank) (rsLoRA: Kalajdzievski 2023, arXiv:2312.03732)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """One adapter. Modules are named by their path in the model."""

    folder: Path
    base_model: str
    """`base_model_name_or_path`, "" where the adapter does not say."""
    rank: int
    """The highest rank of its modules."""
    num_bytes: int
    """Size of the weights' file in bytes."""
    linears: dict[str, LoraModule]
    embeddings: dict[str, LoraModule]
    saved: dict[str, str]
    """Modules that the adapter replaces -> name of the tensor with the new weight."""
    head: Head | None = None
    """A head of its own, by which it classifies, and generates nothing; None: the model's."""
    head_weight: str | None = None
    """Name of the tensor of that head: (labels, hidden_size)."""
    chat_template: str | None = None
    """The chat template that it was trained with; None where it brings none."""
