"""Where a training runs, and in which dtype it computes there."""

from typing import TYPE_CHECKING, Any

from engines.checkpoint.loading import choose_dtype
from engines.errors import UnsupportedModel
from training.params.sft import SftParams
from training.tuners import tuner_of

if TYPE_CHECKING:
    import torch


def training_dtype(params: SftParams, config: Any) -> "torch.dtype":
    """The dtype to load the model in. Raises UnsupportedModel for one that cannot be trained in."""
    import torch

    dtype = choose_dtype(params.torch_dtype, config, "cuda" if _accelerated() else "cpu")
    if dtype == torch.float16 and not _accelerated():
        raise UnsupportedModel("a CPU does not train in float16: choose bfloat16 or float32", param="torch_dtype")
    if dtype == torch.float16 and not tuner_of(params).float16:
        message = "its own weights cannot be trained in float16: choose bfloat16 or float32"
        raise UnsupportedModel(message, param="torch_dtype")
    return dtype


def device_arguments(dtype: "torch.dtype") -> dict[str, Any]:
    """The same in the words of transformers' TrainingArguments."""
    import torch

    return {"use_cpu": not _accelerated(), "bf16": dtype == torch.bfloat16, "fp16": dtype == torch.float16}


def _accelerated() -> bool:
    import torch

    return bool(torch.accelerator.is_available())
