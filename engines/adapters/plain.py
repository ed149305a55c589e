"""LoRA adapters in one plain form, for libraries that read less of PEFT's configuration than it can say.

Every matrix has the same rank, padded with zeros, and each B holds its own scale, so that alpha / rank is 1. So
patterns of ranks and alphas, and rsLoRA, are served exactly by a library that knows one rank and one scale for all
layers.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from engines.adapters.folder import PREFIX
from engines.adapters.spec import CONFIG, WEIGHTS, AdapterSpec


def plain_tensors(spec: AdapterSpec, rank: int) -> dict[str, Tensor]:
    """PEFT's name -> A of shape (rank, in) and B of shape (out, rank), and the head that the adapter brings, float32.

    `rank` is the adapter's or a higher one.
    """
    tensors: dict[str, Tensor] = {}
    with safe_open(spec.folder / WEIGHTS, framework="pt") as file:
        for path, module in spec.linears.items():
            missing = rank - module.rank
            a, b = file.get_tensor(module.a).float(), file.get_tensor(module.b).float()
            tensors[f"{PREFIX}{path}.lora_A.weight"] = functional.pad(a, (0, 0, 0, missing))
            tensors[f"{PREFIX}{path}.lora_B.weight"] = functional.pad(b * module.scale, (0, missing))
        if spec.head_weight is not None:
            tensors[spec.head_weight] = file.get_tensor(spec.head_weight).float()
    return tensors


def write_plain(
    folder: Path, tensors: Mapping[str, Tensor], *, rank: int, linears: Iterable[str], saved: Sequence[str] = ()
) -> Path:
    """Write an adapter of these layers into `folder`, which is new, and return that.

    Layers without tensors are zero. `saved`: modules that it brings whole.
    """
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": leaves(linears),
        "modules_to_save": list(saved) or None,
    }
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def leaves(linears: Iterable[str]) -> list[str]:
    """The last parts of the paths, by which configurations name layers."""
    return sorted({path.rpartition(".")[2] for path in linears})
