"""A tiny model that vLLM runs on a CPU, and settings that keep an engine with it small."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from engines.setup.install import vllm_installed
from engines.vllm.client import VllmEngine
from engines.vllm.config import VllmConfig
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
FORKS = {"VLLM_WORKER_MULTIPROC_METHOD": "fork"}
"""What has vLLM fork its processes from the first, as it does unless told otherwise: it is then imported once, where it
would be three times. Tests of its start and its deaths do without, and run what users do."""


def save_for_vllm(folder: Path, *, positions: int, kind: Any = AutoModelForCausalLM, **changes: Any) -> Path:
    """Write a Llama with heads of 32: vLLM's attention on CPUs knows no smaller ones."""
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(**SIZES | shape | {"max_position_embeddings": positions} | changes)
    return save(config, folder, tokenizer=True, kind=kind)


def forking(config: VllmConfig, *, max_num_queued_reqs: int) -> VllmEngine:
    """An engine that is not started, with FORKS."""
    engine = VllmEngine(config, max_num_queued_reqs=max_num_queued_reqs)
    engine._program = replace(engine._program, environment=engine._program.environment | FORKS)
    return engine
