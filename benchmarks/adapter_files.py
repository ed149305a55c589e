"""Random LoRA adapters on every linear layer of a model, written as PEFT writes them: for measuring, not for reading."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from engines.capabilities import AdapterSupport

RANK = 8


def write_adapter(folder: Path, support: AdapterSupport, *, base_model: str, head: str, seed: int) -> Path:
    """An adapter of rank RANK on all linear layers but `head`; different for each seed. Returns its folder."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (inputs, outputs) in support.linears.items():
        if path != head:
            a = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
            tensors[f"base_model.model.{path}.lora_A.weight"] = a
            tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) * 0.01
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({path.rpartition(".")[2] for path in support.linears if path != head})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": modules,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
