"""A LoRA adapter as a GGUF file, which llama.cpp applies to a model of its base."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.adapters.folder import CHANGES_THE_BASE, OFF, refuse_inserted
from engines.adapters.spec import CONFIG, WEIGHTS
from engines.errors import InvalidAdapter
from training.exports.gguf import architecture_of
from training.exports.gguf.model import in_order, names_of
from training.exports.gguf.types import quantized

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "base_model.model."


def write_adapter(folder: Path, config: Any, target: Path, file: str) -> None:
    """Write the adapter in `folder`, for a base model with this `PreTrainedConfig`. `file`: f32, f16 or bf16.

    Raises InvalidAdapter, UnsupportedModel.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    said = _read_config(folder)
    architecture = architecture_of(config)
    pairs = _pairs(folder, said)
    names = names_of(config, architecture)
    writer = GGUFWriter(target, architecture.lower())
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 0.0)  # the scale is in the weights
        for path, (a, b) in pairs.items():
            name = names.get_name(f"{path}.weight", try_suffixes=(".weight",))
            if name is None:
                raise InvalidAdapter(f"llama.cpp adapts no layer {path}", param="adapters")
            rows = in_order(b, name, config, architecture)
            for end, tensor in (("lora_a", a), ("lora_b", rows)):
                kind = GGMLQuantizationType[file.upper()]
                raw = kind if file == "bf16" else None
                writer.add_tensor(f"{name}.{end}", quantized(tensor.contiguous(), file.upper()), raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _read_config(folder: Path) -> dict[str, Any]:
    """Raises InvalidAdapter for what is no plain LoRA."""
    refuse_inserted(folder)
    try:
        said: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        raise InvalidAdapter(f"{folder.name!r} has no {CONFIG} that can be read", param="adapters") from None
    if said.get("peft_type") != "LORA":
        message = f"llama.cpp has LoRA adapters, none of type {str(said.get('peft_type'))[:50]!r}: merge it"
        raise InvalidAdapter(message, param="adapters")
    found = [name for name in OFF if said.get(name)]
    if found or said.get("bias", "none") != "none":
        raise InvalidAdapter(f"llama.cpp has no {(found or ['bias'])[0]} in adapters: merge it", param="adapters")
    if str(said.get("init_lora_weights")).lower().startswith(CHANGES_THE_BASE):
        message = f"init_lora_weights {said['init_lora_weights']!r} changed the base model's weights"
        raise InvalidAdapter(message, param="adapters")
    return said


def _pairs(folder: Path, said: dict[str, Any]) -> dict[str, tuple["Tensor", "Tensor"]]:
    """Path of a layer -> A (rank, inputs) and B (outputs, rank), which the scale of the update is put into.

    Raises InvalidAdapter.
    """
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).is_file():
        raise InvalidAdapter(
            f"{folder.name!r} has no {WEIGHTS}: weights are read as safetensors only", param="adapters"
        )
    tensors = load_file(folder / WEIGHTS)
    pairs = {}
    for name in tensors:
        path, _, end = name.removeprefix(PREFIX).partition(".lora_")
        if end not in ("A.weight", "B.weight"):
            raise InvalidAdapter(f"llama.cpp has no place for the adapter's {name}: merge it", param="adapters")
        a, b = (tensors[f"{PREFIX}{path}.lora_{each}.weight"] for each in "AB")
        pairs[path] = a, b.float() * _scale(path, len(a), said)
    return pairs


def _scale(path: str, rank: int, said: dict[str, Any]) -> float:
    """alpha / rank, or alpha / sqrt(rank) (rsLoRA: Kalajdzievski 2023, arXiv:2312.03732)."""
    from peft.utils.other import get_pattern_key

    patterns: dict[str, float] = said.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), path), said.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if said.get("use_rslora") else rank)
