"""A tiny model that vLLM runs on a CPU, and settings that keep an engine with it small."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from engines.setup.install import vllm_installed
from tests.engines.pt.tiny import SIZES, save

needs_vllm = pytest.mark.skipif(
    not vllm_installed(), reason="vLLM is not installed: python -m engines.setup.install vllm"
)

TINY: dict[str, Any] = {
    "dtype": "float32",
    "threads": 1,
    "block_size": 32,
    "kv_cache_memory": 0.05,
    "max_num_seqs": 16,
    "enforce_eager": True,
}
"""Settings of VllmConfig."""


def save_for_vllm(folder: Path, *, positions: int, kind: Any = AutoModelForCausalLM, **changes: Any) -> Path:
    """Write a Llama with heads of 32: vLLM's attention on CPUs knows no smaller ones."""
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(**SIZES | shape | {"max_position_embeddings": positions} | changes)
    return save(config, folder, tokenizer=True, kind=kind)
