"""An adapter, written as PEFT loads it."""

import json
from pathlib import Path
from typing import Any

from engines.adapters.folder import refuse_inserted
from engines.adapters.spec import CONFIG, WEIGHTS
from engines.errors import InvalidAdapter
from training.exports.files import copy_files

OF_SWIFT = "swift_type"
"""Field by which ms-swift's own tuners mark their configurations."""
DEFAULT = "default"
"""Folder that its tuners keep an adapter in, and the name that its tensors then have."""
CHANGES_LAYERS = ("use_qa_lora", "use_merged_linear")
"""Fields of its LoRA that PEFT's has no place for."""


def write_peft(folder: Path, target: Path) -> None:
    """Write the adapter in `folder` as PEFT loads it. Raises InvalidAdapter."""
    refuse_inserted(folder)
    inner = folder / DEFAULT
    at = folder if (folder / CONFIG).is_file() or not (inner / CONFIG).is_file() else inner
    config = _read_config(at)
    if at != folder or OF_SWIFT in config:
        _write_of_swift(config, at, target)
    else:
        copy_files(folder, target)
    _check(target)


def _write_of_swift(config: dict[str, Any], folder: Path, target: Path) -> None:
    from peft import LoraConfig
    from safetensors.torch import load_file, save_file

    kind = config.get(OF_SWIFT, config.get("peft_type"))
    changed = [name for name in CHANGES_LAYERS if config.get(name)]
    if kind != "LORA" or changed:
        what = f"with {changed[0]}" if changed else f"of type {str(kind)[:50]!r}"
        raise InvalidAdapter(f"PEFT has no adapters like those of ms-swift {what}, only plain LoRA", param="adapters")
    if not (folder / WEIGHTS).is_file():
        raise InvalidAdapter(
            f"{folder.name!r} has no {WEIGHTS}: weights are read as safetensors only", param="adapters"
        )
    known = {name: value for name, value in config.items() if name in LoraConfig.__dataclass_fields__}
    LoraConfig(**known | {"peft_type": "LORA"}).save_pretrained(str(target))
    tensors = load_file(folder / WEIGHTS)
    save_file({_peft_name(name): tensor for name, tensor in tensors.items()}, target / WEIGHTS, {"format": "pt"})


def _peft_name(name: str) -> str:
    """`model.layers.0.self_attn.q_proj.lora_A.default.weight` -> PEFT's name of the tensor."""
    name = name if name.startswith("base_model.model.") else f"base_model.model.{name}"
    return name.replace(f".{DEFAULT}.", ".").removesuffix(f".{DEFAULT}")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        raise InvalidAdapter(f"{folder.name!r} has no {CONFIG} that can be read", param="adapters") from None
    if not isinstance(config, dict):
        raise InvalidAdapter(f"{CONFIG} of {folder.name!r} is no JSON object", param="adapters")
    return config


def _check(folder: Path) -> None:
    """Raises InvalidAdapter where PEFT does not know what was written."""
    from peft import PeftConfig

    try:
        PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidAdapter(f"PEFT does not know this adapter: {reason}", param="adapters") from error
    if not (folder / WEIGHTS).is_file():
        raise InvalidAdapter(f"the adapter has no {WEIGHTS}: weights are read as safetensors only", param="adapters")
