"""PiSSA (Meng et al. 2024, arXiv:2404.02948): an adapter that starts as the largest singular directions of each weight,
which are taken out of the base model, W = W' + s B0 A0.

So what is learned fits the changed base model only. A checkpoint holds instead the adapter of twice the rank that
does the same to the model as it was, s (B A - B0 A0) = s [B, -B0] [A; A0] (their appendix C), and, in `pissa/`, what
training goes on from.
"""

import json
from pathlib import Path
from typing import Any

from engines.adapters.spec import CONFIG, WEIGHTS
from engines.errors import InvalidRequest
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.tuners.adapter import Adapted

INNER = "pissa"
"""A checkpoint's folder of what training goes on from; the word of `init_weights`, and the beginning of its
variants."""
BEGAN = "initial.safetensors"


def asked_for(params: SftParams) -> bool:
    return params.init_weights.startswith(INNER)


def refusals(params: SftParams) -> list[Refusal]:
    given = {"use_dora": params.use_dora, "use_rslora": params.use_rslora, "lora_bias": params.lora_bias != "none"}
    return [(name, f"not together with init_weights {INNER}") for name, asked in given.items() if asked]


def started_so(model: Any) -> bool:
    """Whether the adapter of `model`, a `PeftModel`, has changed the base model."""
    return str(model.peft_config["default"].init_lora_weights).startswith(INNER)


class Pissa(Adapted):
    def __init__(self, model: Any) -> None:
        """`model`: a `PeftModel` that has learned nothing yet."""
        super().__init__(model)
        self._began = _adapter_weights(model)

    def saved(self, checkpoint: Path) -> None:
        _make_plain(checkpoint, self._began)

    def resume(self, checkpoint: Path) -> Path:
        from safetensors.torch import load_file

        inner = checkpoint / INNER
        if not inner.is_dir():
            message = f"the training of {checkpoint.name} did not begin with init_weights {INNER}"
            raise InvalidRequest(message, param="init_weights")
        super().resume(inner)
        began = load_file(inner / BEGAN)
        _take_out_instead(self.model, self._began, began)
        self._began = began
        return inner


def _adapter_weights(model: Any) -> dict[str, Any]:
    """Copies, by the names that files have."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items() if ".lora_" in name}


def _make_plain(checkpoint: Path, began: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    inner = checkpoint / INNER
    inner.mkdir()
    for name in (CONFIG, WEIGHTS):
        (checkpoint / name).rename(inner / name)
    save_file(began, inner / BEGAN)
    learned = load_file(inner / WEIGHTS)
    for name, start in began.items():
        first = ".lora_A." in name
        learned[name] = torch.cat([learned[name], start if first else -start], dim=0 if first else 1)
    save_file({name: tensor.contiguous() for name, tensor in learned.items()}, checkpoint / WEIGHTS)
    config = json.loads((inner / CONFIG).read_text())
    config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"], "init_lora_weights": True}
    (checkpoint / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _take_out_instead(model: Any, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Put back into the base model what was taken out of it now, and take out what the checkpoint had taken out:
    singular vectors that are computed twice can differ."""
    import torch
    from peft.tuners.lora import LoraLayer

    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or f"{path}.lora_A.weight" not in mine:
            continue
        weight = layer.get_base_layer().weight
        names = f"{path}.lora_B.weight", f"{path}.lora_A.weight"
        delta = mine[names[0]] @ mine[names[1]] - theirs[names[0]] @ theirs[names[1]]
        with torch.no_grad():
            weight += layer.scaling["default"] * delta.to(weight)
