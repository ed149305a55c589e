"""Random LoRA adapters on every linear layer of a model but its head: `python -m benchmarks.adapter_files MODEL
FOLDER N`.

They are written as PEFT writes them, into the folders 0 to N - 1: for measuring, not for reading.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from engines.adapters.spec import CONFIG, WEIGHTS
from engines.capabilities import AdapterSupport
from engines.pt.config import PtConfig
from engines.pt.runner import ModelRunner

RANK = 8


def write_adapter(folder: Path, support: AdapterSupport, *, base_model: str, seed: int) -> None:
    """An adapter of rank RANK, different for each seed."""
    generator = torch.Generator().manual_seed(seed)
    adapted = {path: shape for path, shape in support.linears.items() if path not in support.replaceable}
    tensors = {}
    for path, (inputs, outputs) in adapted.items():
        a = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
        tensors[f"base_model.model.{path}.lora_A.weight"] = a
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) * 0.01
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": sorted({path.rpartition(".")[2] for path in adapted}),
    }
    (folder / CONFIG).write_text(json.dumps(config))


def main(model: str, folder: str, count: str) -> None:
    support = ModelRunner(PtConfig(model=model)).lora.support
    for number in range(int(count)):
        write_adapter(Path(folder) / str(number), support, base_model=model, seed=number)


if __name__ == "__main__":
    main(*sys.argv[1:])
