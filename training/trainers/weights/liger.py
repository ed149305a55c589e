"""Liger's fused kernels (Hsu et al. 2024, arXiv:2410.10989) in the model that is trained."""

from typing import Any

from engines.errors import InvalidRequest, UnsupportedModel
from training.params.sft import SftParams

OURS = {"fused_linear_cross_entropy": False, "cross_entropy": False}
"""The output head and what is learned from it are ours, which compute both at the learned positions only."""


def check_liger(params: SftParams) -> None:
    """Raises InvalidRequest where `use_liger` is asked for and its kernels cannot run."""
    if not params.use_liger:
        return
    import torch

    if not torch.cuda.is_available():
        raise InvalidRequest(
            "its kernels are written for GPUs, and there is none here: leave it out", param="use_liger"
        )


def apply_liger(model: Any) -> None:
    """Have `model` (a `PreTrainedModel`, or a `PeftModel` over one) compute its norms, rotary embeddings and MLPs by
    fused kernels.

    Raises UnsupportedModel where there are none for a model of its type.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    from transformers.integrations.liger import apply_liger_kernel

    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UnsupportedModel(f"Liger has no kernels for models of type {model.config.model_type}", param="use_liger")
    apply_liger_kernel(model, OURS)
