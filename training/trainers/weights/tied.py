"""Embeddings that are the output head, too, and learn: one gradient of both instead of two beside one another."""

from typing import Any

import torch
from torch import nn


def add_in_place(model: Any) -> None:
    """Have the few rows of the embeddings that a batch uses be added to the gradient of the head, which is there first.
    torch makes another gradient of all rows for it, at the moment at which a training of all weights has most.

    The embeddings look up a tensor of their own with the weight's memory, whose gradient are those rows alone. So the
    weight's own gradient is there before these are in it.
    """
    embeddings = tied(model)
    if embeddings is not None:
        embeddings.sparse = True
        embeddings.register_forward_pre_hook(_look_up_rows)
        embeddings.register_forward_hook(_put_back, always_call=True)


def _look_up_rows(embeddings: Any, _: Any) -> None:
    weight = embeddings.weight
    if torch.is_grad_enabled() and weight.requires_grad:
        rows: Any = nn.Parameter(weight.detach())
        rows.of = weight
        rows.register_post_accumulate_grad_hook(_add)
        embeddings._parameters["weight"] = rows


def _put_back(embeddings: Any, *_: Any) -> None:
    embeddings._parameters["weight"] = getattr(embeddings.weight, "of", embeddings.weight)


def _add(rows: Any) -> None:
    if rows.of.grad is None:
        rows.of.grad = rows.grad.to_dense()
    else:
        rows.of.grad.add_(rows.grad)
    rows.grad = None


def tied(model: Any) -> Any | None:
    """The embeddings (an nn.Embedding) of `model`, where they are the output head, too, and learn in float32."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not isinstance(embeddings, nn.Embedding) or head.weight is not embeddings.weight:
        return None
    return embeddings if embeddings.weight.requires_grad and embeddings.weight.dtype == torch.float32 else None
