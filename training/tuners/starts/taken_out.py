"""Adapters that start as a part of each weight, which the base model loses: W = W' + s B0 A0. PiSSA (Meng et al. 2024,
arXiv:2404.02948) takes the largest singular directions, OLoRA (Büyükakyüz 2024, arXiv:2406.01775) the first ones of a
QR decomposition, CorDA and LoRA-GA what the data asks for.

So what is learned fits the changed base model only. A checkpoint holds instead the adapter of twice the rank that
does the same to the model as it was, s (B A - B0 A0) = s [B, -B0] [A; A0] (PiSSA's appendix C), and, in a folder of the
start's name, what training goes on from.
"""

import json
from pathlib import Path
from typing import Any

from engines.adapters.folder import CHANGES_THE_BASE
from engines.adapters.spec import CONFIG, WEIGHTS
from engines.errors import InvalidRequest
from training.tuners.adapter import Adapted

BEGAN = "initial.safetensors"
COMPUTED = ("lora_ga_config", "corda_config")
"""Fields of PEFT's configuration that say how the first values are computed."""


def taken_out(model: Any) -> str | None:
    """The start of the adapter of `model`, a `PeftModel`, where that has changed the base model: also the name of a
    checkpoint's folder of what training goes on from."""
    start = str(model.peft_config["default"].init_lora_weights)
    return next((name for name in CHANGES_THE_BASE if start.startswith(name)), None)


class TakenOut(Adapted):
    def __init__(self, model: Any, start: str) -> None:
        """`model`: a `PeftModel` that has learned nothing yet. `start`: see `taken_out`."""
        super().__init__(model)
        self._start = start
        self._began = _adapter_weights(model)

    def saved(self, checkpoint: Path) -> None:
        _make_plain(checkpoint, self._start, self._began)

    def resume(self, checkpoint: Path) -> Path:
        from safetensors.torch import load_file

        inner = checkpoint / self._start
        if not inner.is_dir():
            start = self._start.replace("_", "-")
            message = f"the training of {checkpoint.name} did not begin with init_weights {start}"
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


def _make_plain(checkpoint: Path, start: str, began: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    inner = checkpoint / start
    inner.mkdir()
    for name in (CONFIG, WEIGHTS):
        (checkpoint / name).rename(inner / name)
    save_file(began, inner / BEGAN)
    learned = load_file(inner / WEIGHTS)
    for name, first_value in began.items():
        is_a = ".lora_A." in name
        learned[name] = torch.cat([learned[name], first_value if is_a else -first_value], dim=0 if is_a else 1)
    save_file({name: tensor.contiguous() for name, tensor in learned.items()}, checkpoint / WEIGHTS)
    (checkpoint / CONFIG).write_text(json.dumps(_plain(json.loads((inner / CONFIG).read_text())), indent=2) + "\n")


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of an adapter of twice the rank that has the same scale."""
    rank, alpha = config["r"], config["lora_alpha"]
    scaled = alpha * rank**0.5 if config["use_rslora"] else alpha  # by rank alone
    plain = config | {"r": 2 * rank, "lora_alpha": 2 * scaled, "use_rslora": False, "init_lora_weights": True}
    return plain | dict.fromkeys(COMPUTED)


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
        delta = delta.T if layer.fan_in_fan_out else delta
        with torch.no_grad():
            weight += layer.scaling["default"] * delta.to(weight)
