"""A model's folder whose linear layers are quantised here: by gptq, awq, fp8 or w8a8."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.checkpoint.loading import choose_dtype
from engines.errors import UnsupportedModel
from training.exports import awq, eight_bits, gptq
from training.exports.blocks import blocks_of, walk
from training.exports.calibration import Calibration, read_calibration
from training.exports.grid import WORD, check_group_size
from training.params.export import ExportParams
from training.params.export_quantization import METHODS, bits_of
from training.report import Report

if TYPE_CHECKING:
    from torch import Tensor


def write_quantized(model: Any, tokenizer: Any, params: ExportParams, report: Report, target: Path, shard: int) -> None:
    """Write config.json and weights to `target`, in files of at most `shard` bytes. `model` is used up.

    Raises InvalidRequest, BadData, UnsupportedModel.
    """
    assert params.quant_method is not None
    stored = model.dtype
    if METHODS[params.quant_method].calibrated:
        replaced, settings = _by_data(model, tokenizer, params, report)
    else:
        replaced, settings = _by_themselves(model, params)
    save(model.to(dtype=stored), replaced, settings, target, shard)


def _by_data(
    model: Any, tokenizer: Any, params: ExportParams, report: Report
) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    _check(model, params)
    found = read_calibration(params, tokenizer)
    for note in found.notes:
        report.message(note, level="warn")
    _tell(found, params, report)
    bits = bits_of(params)
    assert bits is not None, "refused without"
    kind, count, stored = model.config.model_type, len(blocks_of(model)[1]), model.dtype
    model.to(dtype=choose_dtype(None, model.config, model.device.type))
    replaced: dict[str, Tensor] = {}
    for number, block in enumerate(walk(model, found.batches), start=1):
        if params.quant_method == "gptq":
            replaced |= gptq.quantize_block(block, bits=bits, group=params.group_size)
        else:
            replaced |= awq.quantize_block(block, kind, group=params.group_size, stored=stored)
        report.message(f"Quantised block {number} of {count}.")
    if params.quant_method == "gptq":
        return replaced, gptq.settings(bits, params.group_size)
    return replaced, awq.settings(params.group_size)


def _check(model: Any, params: ExportParams) -> None:
    """Raises InvalidRequest, UnsupportedModel."""
    import torch

    if params.quant_method == "awq":
        awq.check_type(model.config.model_type)
    path, blocks = blocks_of(model)
    linears = {f"{path}.{name}": each for name, each in blocks.named_modules() if type(each) is torch.nn.Linear}
    check_group_size(params.group_size, [layer.in_features for layer in linears.values()])
    each = WORD // (bits_of(params) or WORD)
    for name, layer in linears.items():
        if layer.out_features % each or layer.in_features % each:
            message = (
                f"{name} has {layer.in_features} inputs and {layer.out_features} outputs: {each} do not divide both"
            )
            raise UnsupportedModel(message, param="model")


def _tell(found: Calibration, params: ExportParams, report: Report) -> None:
    tokens = sum(int(batch.mask.sum()) for batch in found.batches)
    report.message(f"Quantising by {params.quant_method} on {found.samples} samples of {tokens} tokens together.")
    if found.samples < params.quant_n_samples:
        report.message(f"The data set has {found.samples} of the {params.quant_n_samples} samples.", level="warn")


def _by_themselves(model: Any, params: ExportParams) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Raises UnsupportedModel."""
    from engines.checkpoint.quantize import linears_to_quantize

    blocks_of(model)  # refuses what has no linear layers, or most of its weights in none
    kind: eight_bits.Kind = "fp8" if params.quant_method == "fp8" else "w8a8"
    replaced: dict[str, Tensor] = {}
    for path, layer in linears_to_quantize(model):
        replaced |= {f"{path}.{name}": each for name, each in eight_bits.quantize(layer.weight.data, kind).items()}
        if layer.bias is not None:
            replaced[f"{path}.bias"] = layer.bias.data
    return replaced, eight_bits.settings(kind)


def save(model: Any, replaced: Mapping[str, "Tensor"], settings: dict[str, Any], target: Path, shard: int) -> None:
    """The model as transformers writes it, with the tensors of quantised layers in place of their own."""
    layers = {name.rpartition(".")[0] for name in replaced}
    kept = {name: each for name, each in model.state_dict().items() if name.rpartition(".")[0] not in layers}
    tensors = {name: each.cpu().contiguous() for name, each in (kept | dict(replaced)).items()}
    model.save_pretrained(target, state_dict=tensors, max_shard_size=shard)
    config = json.loads((target / "config.json").read_bytes())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": settings}, indent=2) + "\n")
