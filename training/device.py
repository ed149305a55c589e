"""Where a training runs, and in which dtype it computes there."""

from typing import TYPE_CHECKING, Any

from engines.checkpoint.loading import choose_dtype
from engines.errors import InvalidRequest, UnsupportedModel
from training.params.sft import SftParams
from training.tuners import tuner_of

if TYPE_CHECKING:
    import torch


def check_devices(processes: int) -> None:
    """Raises InvalidRequest where several processes would have to share a GPU."""
    if processes == 1:
        return
    import torch

    there = torch.cuda.device_count()
    if 0 < there < processes:
        message = f"{processes} processes need a GPU each, and {there} can be seen: lower NPROC_PER_NODE"
        raise InvalidRequest(message, param="devices")


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
