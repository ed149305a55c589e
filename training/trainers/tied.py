"""Embeddings that are the output head, too, and learn: one gradient of both instead of two beside one another."""

from typing import Any

import torch
from torch import Tensor, nn


def add_in_place(model: Any) -> None:
    """Have the few rows of the embeddings that a batch uses be added to the gradient of the head, which is there first.
    torch makes another gradient of all rows for it, at the moment at which a training of all weights has most.

    The embeddings look up a tensor of their own with the weight's memory, whose gradient are those rows alone. So the
    weight's own gradient is there before these are in it.
    """
    embeddings = tied(model)
    if embeddings is None:
        return
    weight = embeddings.weight

    def add(rows: Tensor) -> None:
        assert rows.grad is not None, "it is there now"
        if weight.grad is None:
            weight.grad = rows.grad.to_dense()
        else:
            weight.grad.add_(rows.grad)
        rows.grad = None

    def look_up(module: Any, _: Any) -> None:
        if torch.is_grad_enabled() and weight.requires_grad:
            alias = nn.Parameter(weight.detach())
            alias.register_post_accumulate_grad_hook(add)
            module._parameters["weight"] = alias

    def put_back(module: Any, *_: Any) -> None:
        module._parameters["weight"] = weight

    embeddings.sparse = True
    embeddings.register_forward_pre_hook(look_up)
    embeddings.register_forward_hook(put_back, always_call=True)


def tied(model: Any) -> Any | None:
    """The embeddings (an nn.Embedding) of `model`, where they are the output head, too, and learn in float32."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not isinstance(embeddings, nn.Embedding) or head.weight is not embeddings.weight:
        return None
    return embeddings if embeddings.weight.requires_grad and embeddings.weight.dtype == torch.float32 else None
