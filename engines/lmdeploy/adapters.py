"""LoRA adapters as LMDeploy can take them: which layers there are, and one plain form for all that PEFT allows.

LMDeploy knows one rank and one scale for all layers of an adapter and would ignore patterns and rsLoRA. In the plain form
every matrix has the same rank, padded with zeros, and each B holds its own scale, so that alpha / rank is 1.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from engines.adapters.spec import CONFIG, WEIGHTS, AdapterSpec
from engines.loading import load_config

PREFIX = "base_model.model."
ROUTERS = ("gate", "router", "shared_expert_gate")
"""LMDeploy has no place for LoRA there, and ends where it is asked for one."""


def adaptable_linears(folder: str) -> dict[str, tuple[int, int]]:
    """Path -> (in_features, out_features) of the linear layers of transformers' model, its head and routers aside.

    Whether LMDeploy's model has a place for each shows once it is built.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(folder)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, ImportError):  # not a model of text alone
        return {}
    head = model.get_output_embeddings()
    return {
        path: (layer.in_features, layer.out_features)
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head and path.rpartition(".")[2] not in ROUTERS
    }


def leaves(linears: Iterable[str]) -> list[str]:
    """The last parts of the paths, which is how LMDeploy is told of layers to adapt."""
    return sorted({path.rpartition(".")[2] for path in linears})


def plain_tensors(spec: AdapterSpec, rank: int) -> dict[str, Tensor]:
    """PEFT's name -> A of shape (rank, in) and B of shape (out, rank), float32. `rank` is the adapter's or a higher one."""
    tensors: dict[str, Tensor] = {}
    with safe_open(spec.folder / WEIGHTS, framework="pt") as file:
        for path, module in spec.linears.items():
            missing = rank - module.rank
            a, b = file.get_tensor(module.a).float(), file.get_tensor(module.b).float()
            tensors[f"{PREFIX}{path}.lora_A.weight"] = functional.pad(a, (0, 0, 0, missing))
            tensors[f"{PREFIX}{path}.lora_B.weight"] = functional.pad(b * module.scale, (0, missing))
    return tensors


def write_plain(folder: Path, tensors: dict[str, Tensor], *, rank: int, targets: list[str]) -> Path:
    """Write an adapter in the plain form into `folder`, and return that."""
    folder.mkdir()
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": targets,
    }
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder
