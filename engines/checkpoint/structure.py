"""What a model consists of, found from its configuration alone: no weights are read."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN

log = logging.getLogger(__name__)

EXPERTS = {
    "mixtral": ("gate", "w1", "w2", "w3"),
    "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj"),
}
"""The pattern by which transformers stacks the weights of experts, and what their layers, and the router's, were called
before. PEFT still adapts the stacked weights of all layers by these names, and by `all-linear`; experts of models with
other patterns it leaves as they are."""


@dataclass(frozen=True, slots=True)
class Structure:
    config: Any
    """transformers' configuration."""
    num_parameters: int
    linears: dict[str, tuple[int, int]]
    """Path -> (in_features, out_features) of the linear layers, but for the head: as PEFT names them."""
    experts: frozenset[str] = frozenset()
    """See `expert_layers`."""


def describe(config: Any) -> Structure:
    """Build the model without memory. Nothing is known of models that transformers has no class for."""
    try:
        model = _without_weights(config)
    except Exception as error:  # noqa: BLE001 (whatever it is, an engine may run the model all the same)
        log.warning("the layers of %s cannot be told from its configuration: %s", config.model_type, error)
        return Structure(config, 0, {})
    head = model.get_output_embeddings()
    linears = {
        path: (module.in_features, module.out_features)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Structure(config, parameters, linears, expert_layers(model))


def expert_layers(model: Any) -> frozenset[str]:
    """Paths that layers of experts and routers would have, which PEFT adapts by their names although the model has no
    such layers any more."""
    patterns = {**_MODEL_TO_CONVERSION_PATTERN, "mixtral": "mixtral"}  # as PEFT has them
    names = EXPERTS.get(patterns.get(model.config.model_type, ""), ())
    owners = [path.rpartition(".")[0] for path, _ in model.named_modules() if path.endswith(".experts")]
    return frozenset(f"{owner}.{'' if name == 'gate' else 'experts.'}{name}" for owner in owners for name in names)


def conv1ds(config: Any) -> list[str]:
    """Paths of the layers that GPT-2 and its like have in place of linear ones: transformers' `Conv1D`, whose weights
    lie the other way round."""
    modules = _without_weights(config).named_modules()
    return [path for path, module in modules if isinstance(module, transformers.pytorch_utils.Conv1D)]


def has_biases(config: Any) -> bool:
    """Whether any weight is one, by its name, as PEFT finds them."""
    return any("bias" in name for name, _ in _without_weights(config).named_parameters())


def _without_weights(config: Any) -> Any:
    with torch.device("meta"):
        return _model_class(config)._from_config(config)


def _model_class(config: Any) -> Any:
    """The class that the checkpoint names: a model for images has other paths than its text part alone."""
    named = [getattr(transformers, name, None) for name in getattr(config, "architectures", None) or ()]
    return next((one for one in named if one is not None), None) or AutoModelForCausalLM._model_mapping[type(config)]
