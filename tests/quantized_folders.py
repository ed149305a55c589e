"""Checkpoints as hubs hold them whose linear layers were quantised by other programs, made of tiny models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.packed import Packing
from tests.packed_by_hqq import HqqPacking

BLOCK = 16
"""Rows and columns of an FP8 weight that share a scale."""


def save_fp8(model: Path, folder: Path, *, block: int | None = BLOCK) -> dict[str, Tensor]:
    """Write `model` in DeepSeek's form: 8-bit floating-point numbers, and a scale for each block of them (None: of a
    weight). Returns the weights that they stand for, by name."""
    tensors = load_file(model / "model.safetensors")
    meant, saved = dict(tensors), dict(tensors)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors[name].shape
        high, wide = (rows, columns) if block is None else (block, block)
        blocks = tensors[name].view(rows // high, high, columns // wide, wide)
        scales = blocks.abs().amax((1, 3), keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
        packed = (blocks / scales).to(torch.float8_e4m3fn)
        saved[name] = packed.view(rows, columns)
        saved[f"{name}_scale_inv"] = scales.flatten()[0].clone() if block is None else scales[:, 0, :, 0].contiguous()
        meant[name] = (packed.float() * scales).view(rows, columns)
    shutil.copytree(model, folder)
    save_file(saved, folder / "model.safetensors", {"format": "pt"})
    told = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block and [block, block]}
    say_quantized(folder, told)
    return meant


def save_compressed(
    model: Path, folder: Path, *, bits: int, group: int = BLOCK, inputs: bool = False, symmetric: bool = True
) -> dict[str, Tensor]:
    """Write `model` as compressed-tensors does, which comes with vLLM: integers, and a scale for each row (8 bits) or
    each `group` of them (4 bits), with a zero where not `symmetric`. `inputs`: what layers get is to be rounded, too,
    each token with a scale of its own. Returns the weights that they stand for, by name."""
    shared: dict[str, Any] = {"strategy": "channel"} if bits == 8 else {"strategy": "group", "group_size": group}
    form = {"num_bits": bits, "type": "int", "symmetric": symmetric, **shared}
    return _save_compressed(model, folder, form, inputs=inputs)


def save_compressed_fp8(model: Path, folder: Path, *, inputs: bool, **shared: Any) -> dict[str, Tensor]:
    """The same, with 8-bit floating-point numbers. `shared`: which of them have a scale in common, in its words."""
    return _save_compressed(model, folder, {"num_bits": 8, "type": "float", "symmetric": True, **shared}, inputs=inputs)


def _save_compressed(model: Path, folder: Path, form: dict[str, Any], *, inputs: bool) -> dict[str, Tensor]:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    kind = {"num_bits": form["num_bits"], "type": form["type"]}
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(**form),
        input_activations=QuantizationArgs(strategy="token", dynamic=True, **kind) if inputs else None,
    )
    apply_quantization_config(plain, QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"]))
    meant = load_file(model / "model.safetensors")
    for path, layer in plain.named_modules():
        if hasattr(layer, "weight_scale"):
            meant[f"{path}.weight"] = _scale(layer, form)
    compressor = ModelCompressor.from_pretrained_model(plain)
    compressor.compress_model(plain)
    shutil.copytree(model, folder)
    plain.save_pretrained(folder)
    compressor.update_config(str(folder))
    return meant


def _scale(layer: Any, form: dict[str, Any]) -> Tensor:
    """Give a layer its scales and zeros. Returns the weight that it then stands for."""
    rows, columns = layer.weight.shape
    high, wide = (*layer.weight_scale.shape, 1)[:2]
    shared = layer.weight.detach().view(high, rows // high, wide, columns // wide)
    float8 = form["type"] == "float"
    most = torch.finfo(torch.float8_e4m3fn).max if float8 else 2 ** (form["num_bits"] - 1) - 1
    scales = shared.abs().amax((1, 3), keepdim=True) / most
    layer.weight_scale.data = scales.reshape(layer.weight_scale.shape)
    numbers = shared / scales
    if form["symmetric"]:
        rounded = numbers.to(torch.float8_e4m3fn).float() if float8 else numbers.round()
        return (rounded * scales).view(rows, columns)
    zeros = -(numbers.amax((1, 3), keepdim=True) / 4).round()
    layer.weight_zero_point.data = zeros.reshape(layer.weight_scale.shape).to(layer.weight_zero_point.dtype)
    rounded = (numbers + zeros).round().clamp(-most - 1, most)
    return ((rounded - zeros) * scales).view(rows, columns)


def save_packed(model: Path, folder: Path, packing: Packing | HqqPacking) -> dict[str, Tensor]:
    """Write `model` as the programs of GPTQ, AWQ or HQQ do, with the weights of linear layers packed. Returns the
    weights that they stand for, by name."""
    tensors = load_file(model / "model.safetensors")
    meant, saved = dict(tensors), dict(tensors)
    for name in [name for name in tensors if packing.packs(name)]:
        parts, meant[name] = packing.pack(saved.pop(name))
        saved |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
    shutil.copytree(model, folder)
    save_file(saved, folder / "model.safetensors", {"format": "pt"})
    say_quantized(folder, packing.told)
    return meant


def say_quantized(folder: Path, told: dict[str, Any]) -> None:
    """Have config.json say how the weights were quantised."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": told}))


SAVED: dict[str, Callable[[Path, Path], dict[str, Tensor]]] = {
    "fp8": save_fp8,
    "fp8, a scale for each weight": lambda model, folder: save_fp8(model, folder, block=None),
    "compressed-tensors in fp8, inputs too": lambda model, folder: save_compressed_fp8(
        model, folder, inputs=True, strategy="channel"
    ),
    "compressed-tensors in fp8, a scale for each weight": lambda model, folder: save_compressed_fp8(
        model, folder, inputs=False, strategy="tensor"
    ),
    "compressed-tensors in fp8, in blocks": lambda model, folder: save_compressed_fp8(
        model, folder, inputs=True, strategy="block", block_structure=[BLOCK, BLOCK]
    ),
    "compressed-tensors with 8 bits, inputs too": lambda model, folder: save_compressed(
        model, folder, bits=8, inputs=True
    ),
    "compressed-tensors with 8 bits": lambda model, folder: save_compressed(model, folder, bits=8),
    "compressed-tensors with 4 bits": lambda model, folder: save_compressed(model, folder, bits=4),
    "compressed-tensors with 4 bits and zeros": lambda model, folder: save_compressed(
        model, folder, bits=4, symmetric=False
    ),
    "gptq": lambda model, folder: save_packed(model, folder, Packing()),
    "awq": lambda model, folder: save_packed(model, folder, Packing(method="awq", layout="gemm", symmetric=False)),
    "hqq": lambda model, folder: save_packed(model, folder, HqqPacking()),
}
