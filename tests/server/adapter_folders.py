"""PEFT's folders, for EchoEngine, which reads their headers and not their numbers."""

import json
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save_file

from engines.adapters.spec import CONFIG, WEIGHTS
from engines.echo import HIDDEN_SIZE

RANK = 4
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


def write_adapter(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """An adapter of one layer. Each seed gives other weights, and `config` what its configuration says besides."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 8} | config))
    tensors = {
        f"{MODULE}.lora_A.weight": numpy.full((RANK, HIDDEN_SIZE), seed, numpy.float32),
        f"{MODULE}.lora_B.weight": numpy.full((HIDDEN_SIZE, RANK), seed, numpy.float32),
    }
    save_file(tensors, folder / WEIGHTS)
    return folder
