"""Rotary position embeddings that do not depend on what else is in the batch."""

from typing import Any

import torch

from engines.errors import UnsupportedModel


def scale(text_config: Any, kind: str | None, max_model_len: int | None) -> None:
    """Stretch the model's positions to `max_model_len` by `rope_scaling`: `linear` or `dynamic` (NTK).

    Raises UnsupportedModel where there is no length to stretch to, where the model has no rotary embeddings, and where
    it was trained with a scaling of another kind, in whose place another one would make it write nonsense.
    """
    if kind is None:
        return
    parameters = getattr(text_config, "rope_parameters", None)
    if not parameters or "rope_theta" not in parameters:
        raise UnsupportedModel("rope_scaling: this model has no single set of rotary embeddings", param="rope_scaling")
    own = parameters.get("rope_type", "default")
    if own not in ("default", kind):
        message = f"rope_scaling {kind} would replace the model's own, {own}, which it was trained with"
        raise UnsupportedModel(message, param="rope_scaling")
    if max_model_len is None:
        raise UnsupportedModel("rope_scaling needs max_length, the length to scale to", param="rope_scaling")
    factor = _factor(kind, parameters, max_model_len / text_config.max_position_embeddings)
    text_config.rope_parameters = {**parameters, "rope_type": kind, "factor": factor}


def _factor(kind: str, parameters: dict[str, Any], stretch: float) -> float:
    """The factor for `stretch` times the positions that the model takes by itself, never less than its own factor.

    With a `linear` scaling of its own they are stretched already, and go on from there; `dynamic` counts from those
    before any scaling.
    """
    own = float(parameters.get("factor", 1.0))
    return own * max(1.0, stretch) if kind == "linear" else max(own, stretch)


def freeze(model: torch.nn.Module, max_model_len: int) -> None:
    """Fix frequencies that transformers would choose by the longest position of a batch, to those for `max_model_len`.

    `dynamic` and `longrope` embeddings change with the longest position in a forward pass: in a batch of several
    requests one's length would change another's answer.
    """
    longest = torch.tensor([[max_model_len - 1]])
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        by_layer = kinds if isinstance(kinds, dict) else {None: kinds}
        for layer_type, kind in by_layer.items():
            if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope"):
                device = next(module.buffers()).device
                chosen = {} if layer_type is None else {"layer_type": layer_type}
                module(torch.zeros(1, device=device), longest.to(device), **chosen)
                by_layer[layer_type] = "default"
        if kinds is not None and not isinstance(kinds, dict):
            module.rope_type = by_layer[None]
