"""PEFT adapters written by hand: small, for the shapes of an engine's layers, and without torch."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from engines.adapters.spec import CONFIG, WEIGHTS
from engines.capabilities import AdapterSupport
from engines.echo import adapter_support

ECHO = adapter_support(max_loras=8)
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def lora_tensors(
    modules: Iterable[str] = MODULES, *, rank: int = 2, seed: int = 0, support: AdapterSupport = ECHO
) -> dict[str, np.ndarray]:
    """A and B of each module. Another seed makes another adapter."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, int]] = {}
    for module in modules:
        if module in support.embeddings:
            inputs, outputs = support.embeddings[module]
            a, b = f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
        else:
            inputs, outputs = support.linears[module]
            a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        shapes |= {f"base_model.model.{a}": (rank, inputs), f"base_model.model.{b}": (outputs, rank)}
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_adapter(
    folder: Path,
    *,
    rank: int = 2,
    seed: int = 0,
    tensors: Mapping[str, np.ndarray] | None = None,
    **config: Any,
) -> Path:
    """Write one for EchoEngine, or what `tensors` and `config` say, into `folder`, and return that."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": "tests/echo"} | config
    (folder / CONFIG).write_text(json.dumps(written))
    save_file(dict(lora_tensors(rank=rank, seed=seed) if tensors is None else tensors), folder / WEIGHTS)
    return folder


def write_head_adapter(folder: Path, *, labels: int = 1, seed: int = 0) -> Path:
    """An adapter for EchoEngine that brings a head."""
    tensors = lora_tensors(seed=seed) | {"base_model.model.score.weight": np.ones((labels, 32), np.float32)}
    return write_adapter(folder, tensors=tensors, task_type="SEQ_CLS", modules_to_save=["classifier", "score"])
