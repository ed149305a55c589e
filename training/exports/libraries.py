"""A model's folder whose linear layers are quantised as a library has them: bitsandbytes, HQQ or torchao."""

import copy
from pathlib import Path
from typing import Any

from engines.checkpoint.heads import is_classifier, task_of
from engines.checkpoint.loading import load_config, load_model
from engines.checkpoint.quantization import Quantization
from engines.checkpoint.quantize import linears_to_quantize, quantized_layers, torchao_config
from engines.errors import UnsupportedModel
from training.exports.weights import save


def write_by_library(folder: Path, quantization: Quantization, target: Path, *, dtype: Any, shard: int) -> None:
    """Write config.json and weights to `target`. Raises UnsupportedModel.

    `folder`: of the model as it is. `dtype`: of what is not quantised; `shard`: bytes of the largest file.
    """
    config = load_config(str(folder))
    if quantization.method != "bnb":  # which quantises GPT-2's layers, too
        _check_linears(config)
    if quantization.method == "torchao":
        model = _by_torchao(folder, config, quantization, dtype)
    else:
        model = load_model(
            str(folder),
            config=config,
            task_type=task_of(config),
            dtype=dtype,
            device_map="cpu",
            quantization=quantization,
        )
    if quantization.method == "hqq":
        save(model, {}, _told_by_hqq(model), target, shard)
    else:
        model.save_pretrained(target, max_shard_size=shard)


def _check_linears(config: Any) -> None:
    """Raises UnsupportedModel where there is nothing that torchao or HQQ would quantise."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(copy.deepcopy(config))
    if next(linears_to_quantize(model), None) is None:
        message = f"models of type {config.model_type} have no linear layers to quantise"
        raise UnsupportedModel(message, param="model")


def _told_by_hqq(model: Any) -> dict[str, Any]:
    """`quantization_config` of config.json, as transformers 4 wrote it, of which 5 writes nothing."""
    return {
        "quant_method": "hqq",
        "quant_config": next(iter(quantized_layers(model).values())).quant_config,
        "skip_modules": ["lm_head"],
    }


def _by_torchao(folder: Path, config: Any, quantization: Quantization, dtype: Any) -> Any:
    """By transformers, which writes only what it has quantised itself so that it can be loaded again."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if is_classifier(config) else AutoModelForCausalLM
    settings = torchao_config(quantization.bits, auto, config)
    return auto.from_pretrained(folder, dtype=dtype, device_map="cpu", quantization_config=settings)
