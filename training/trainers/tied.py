"""Embeddings that are the output head, too, and learn: one gradient of both instead of two beside one another."""

from typing import Any

import torch


def add_in_place(model: Any) -> None:
    """Have the few rows of the embeddings that a batch uses be added to the gradient of the head, which is there first.
    torch makes them a second gradient of all rows otherwise, at the moment at which a training of all weights has most.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not isinstance(embeddings, torch.nn.Embedding):
        return
    weight = embeddings.weight
    if head.weight is weight and weight.requires_grad and weight.dtype == torch.float32:
        embeddings.sparse = True
