"""What of the model in training goes to the engine that draws its answers: copies, in the engine's form.

A LoRA adapter goes into a slot beside the engine's own base model, as it is served. What any other way of training has
learned is written over the engine's weights, merged.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from engines.adapters.folder import CHANGES_THE_BASE
from engines.capabilities import AdapterSupport
from engines.checkpoint.loading import load_config, load_model
from engines.pt.config import PtConfig
from engines.pt.lora.weights import AdapterWeights

ADAPTER = "default"


def served_as_adapter(model: nn.Module, support: AdapterSupport) -> bool:
    """Whether an engine with such `support` computes what `model` does with the adapter in it and its own base."""
    if not isinstance(model, PeftModel) or type(config := model.peft_config[ADAPTER]) is not LoraConfig:
        return False  # among them AdaLoRA's, which PEFT makes one of these
    if config.use_dora or config.bias != "none" or str(config.init_lora_weights).startswith(CHANGES_THE_BASE):
        return False
    layers = dict(_adapted(model))
    known = support.linears.keys() | support.embeddings.keys()
    return all(
        path in (known if isinstance(layer, LoraLayer) else support.replaceable) for path, layer in layers.items()
    )


def adapter_weights(model: PeftModel, *, linears: torch.dtype, others: torch.dtype) -> AdapterWeights:
    """The adapter as it is now. `linears`, `others`: types of the matrices of linear layers, and of all else."""
    found = AdapterWeights({}, {}, {})
    for path, layer in _adapted(model):
        if not isinstance(layer, LoraLayer):
            found.saved[path] = _copy(layer.modules_to_save[ADAPTER].weight, others)
            continue
        scale = layer.scaling[ADAPTER]
        if ADAPTER in layer.lora_embedding_A:
            a, b = layer.lora_embedding_A[ADAPTER], layer.lora_embedding_B[ADAPTER]
            found.embeddings[path] = _copy(a.T, others), _copy(b.T * scale, others)
        else:
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            found.linears[path] = _copy(a, linears), _copy(b.T * scale, linears)
    return found


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that compute the same without an adapter, by their names in the plain model; tied ones by each."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    inside: tuple[str, ...] = ()
    weights = {}
    for path, module in plain.named_modules():
        if inside and path.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            inside += (f"{path}.",)
            module = _merged(module)
        for leaf, weight in module.named_parameters(recurse=False):
            weights[f"{path}.{leaf}" if path else leaf] = weight.detach()
    return weights


def base_weights(source: str, config: PtConfig) -> dict[str, Tensor]:
    """Those of the model in `source`, on the CPU and in the engine's type, by the same names; tied ones by each.

    Raises UnsupportedModel.
    """
    model = load_model(
        source,
        config=load_config(source, revision=config.revision, token=config.token),
        dtype=getattr(torch, config.dtype) if config.dtype else "auto",
        device_map="cpu",
        revision=config.revision,
        token=config.token,
    )
    return {name: weight.detach() for name, weight in model.named_parameters(remove_duplicate=False)}


def _merged(layer: nn.Module) -> nn.Module:
    """The layer without what PEFT puts around it, and with what was learned. The layer itself stays as it is."""
    if isinstance(layer, ModulesToSaveWrapper):
        return layer.modules_to_save[ADAPTER]
    alone = copy.deepcopy(layer).float()  # a sum in half precision would lose most of an adapter
    alone.merge(adapter_names=[ADAPTER])
    return alone.get_base_layer()


def _adapted(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """The layers with a part in the adapter, by their paths in the plain model."""
    for path, module in model.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            yield path, module


def _copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to("cpu", dtype, copy=True).contiguous()
