"""What the C library keeps of memory that was let go, given back where a step takes most.

On a CPU, tensors of up to 32 MiB are pieces of its heap. Those that stay, for the backward pass or as gradients, lie
between those that do not, and the gaps are kept: a fifth and a third of what two small trainings by LoRA took, and
200 MiB of what one of all weights did. Giving back takes about 20 ms; to have no tensor in the heap (M_MMAP_THRESHOLD)
made the steps of a small model two thirds longer.
"""

import ctypes
from typing import Any

import torch

TIMES = 4
"""How often memory is given back while gradients come."""


def give_back(model: Any) -> None:
    """In each forward pass of `model` that learns, before the logits take theirs, and as soon as each quarter of the
    gradients is there. Nothing is done where the C library is not glibc."""
    head, trim = model.get_output_embeddings(), _malloc_trim()
    if trim is None:
        return

    def trim_where_it_learns(*_: Any) -> None:  # and returns nothing, which hooks would put in place of a tensor
        if torch.is_grad_enabled():
            trim(0)

    def trim_always(_: Any) -> None:
        trim(0)

    if head is not None:
        head.register_forward_pre_hook(trim_where_it_learns)
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in learning[:: -(-len(learning) // TIMES)]:
        weight.register_post_accumulate_grad_hook(trim_always)


def give_back_now() -> None:
    if (trim := _malloc_trim()) is not None:
        trim(0)


def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
