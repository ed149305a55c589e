"""Jobs that cannot fit, told before they are queued: where what the weights take alone is more than the device has.

Without torch, and below what a training takes: `training.memory` estimates that.
"""

import json
import shutil
import subprocess
from pathlib import Path

import psutil

from training.folder import JobError
from training.optimizers import optimizer_of
from training.optimizers.base import ADAMW
from training.params.sft import SftParams
from training.tuners import tuner_of

GIB = 2**30
QUERY = ("--query-gpu=memory.total", "--format=csv,noheader,nounits")
PATIENCE_SECONDS = 20.0


def too_large(params: SftParams, weights: int | None) -> JobError | None:
    """Why no device here can hold a training of a model with so many weights; None: one may, or nothing is known."""
    if weights is None or params.quant_method is not None or _is_quantized(params):
        return None
    if params.deepspeed or params.fsdp or params.tensor_model_parallel_size > 1:  # several devices hold a part each
        return None
    least, device = weights * _bytes_of_each(params), largest_device()
    if least <= device:
        return None
    instead = "train_type lora, or lora with quant_method bnb" if _trains_all(params) else "quant_method bnb"
    message = (
        f"the weights of the model, with what is kept of those that learn, take {least / GIB:.0f} GiB, and no device "
        f"here has more than {device / GIB:.0f}: choose {instead}"
    )
    return JobError(code="out_of_memory", message=message, param="train_type" if _trains_all(params) else "model")


def _bytes_of_each(params: SftParams) -> int:
    """Of a weight, at least."""
    if not _trains_all(params):
        return 2
    if params.bf16 is False:
        return 4  # weight and gradient in half precision
    by_adam = optimizer_of(params).parameter == "optim" and params.optim in ADAMW
    return 16 if by_adam else 8


def _trains_all(params: SftParams) -> bool:
    frozen = params.freeze_parameters or params.freeze_parameters_ratio
    return tuner_of(params).name == "full" and not frozen


def _is_quantized(params: SftParams) -> bool:
    """Whether the checkpoint is, so that its weights are not as many as its numbers."""
    try:
        return "quantization_config" in json.loads((Path(params.model or "") / "config.json").read_bytes())
    except (OSError, ValueError):
        return False


def largest_device() -> int:
    """Bytes of the GPU with the most memory, or of the machine where there is none."""
    program = shutil.which("nvidia-smi")
    try:
        command = [program or "nvidia-smi", *QUERY]
        said = subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):  # there is none
        said = b""
    sizes = [int(line) << 20 for line in said.decode().split() if line.isdecimal()]
    return max(sizes, default=int(psutil.virtual_memory().total))
