"""In which types a training holds its weights, and computes with them."""

from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

from engines.checkpoint.loading import choose_dtype
from engines.checkpoint.quantize import is_quantized
from engines.errors import UnsupportedModel
from training.device import accelerated
from training.params.sft import SftParams

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Precision:
    """Types of the numbers in a training."""

    base: "torch.dtype"
    """Weights that stay as they are."""
    learning: "torch.dtype"
    """Weights that learn, their gradients and what the optimizer keeps of them."""
    autocast: "torch.dtype | None"
    """What products are computed in; None: in the type of the weights."""
    saved: "torch.dtype"
    """The weights of a whole model, in a checkpoint."""


def precision_of(params: SftParams, config: Any) -> Precision:
    """`config`: the model's. Raises UnsupportedModel for what cannot be trained in."""
    import torch

    stored = config.get_text_config().dtype or config.dtype or torch.float32
    base = choose_dtype(_asked(params, stored), config, "cuda" if accelerated() else "cpu")
    if (base == torch.float16 or params.fp16) and not accelerated():
        given = "fp16" if params.fp16 else "torch_dtype"
        raise UnsupportedModel("a CPU does not train in float16: choose bfloat16 or float32", param=given)
    if base == torch.float16 and params.fp16 is False:
        message = "the model is in float16, in which weights that learn lose their gradients: leave it out"
        raise UnsupportedModel(message, param="fp16")
    autocast = _autocast(params, base)
    learning = params.lora_dtype or ("bfloat16" if base == torch.bfloat16 and autocast is None else "float32")
    saved = stored if params.torch_dtype is None else getattr(torch, params.torch_dtype)
    return Precision(base, getattr(torch, learning), autocast, saved)


def hold(model: Any, precision: Precision) -> None:
    """Give the weights of `model` that are in half precision the types that they are trained or kept in, but for those
    that are quantised."""
    import torch

    for tensor in (*model.parameters(), *model.buffers()):
        if is_quantized(tensor):
            continue
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor.data = tensor.data.to(precision.learning if tensor.requires_grad else precision.base)


def keep_no_casts(accelerator: Any) -> None:
    """Have autocast cast each weight where it is multiplied, and let go of it: to keep all of them until the loss is
    there takes as much as the model in half precision, and saves nothing where a step uses each weight once."""
    from accelerate.utils import AutocastKwargs

    accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)


def return_as_computed(model: Any) -> None:
    """Have `model`, which accelerate has prepared, return what it has computed: accelerate makes float32 of it, a copy
    of the logits twice as large, where losses make float32 of some rows at a time."""
    from accelerate.utils.operations import ConvertOutputsToFp32

    converts = getattr(model.forward, "__wrapped__", None)
    if isinstance(converts, ConvertOutputsToFp32):
        computes = converts.model_forward
        model.forward = MethodType(computes, model) if isinstance(model.forward, MethodType) else computes


def _asked(params: SftParams, stored: "torch.dtype") -> str | None:
    """Name of the type asked for: a model in half precision follows the one that is computed in."""
    if params.torch_dtype is not None or stored.itemsize != 2:
        return params.torch_dtype
    return "bfloat16" if params.bf16 else "float16" if params.fp16 else None


def _autocast(params: SftParams, base: "torch.dtype") -> "torch.dtype | None":
    import torch

    for given, dtype in ((params.bf16, torch.bfloat16), (params.fp16, torch.float16)):
        if given or (given is None and base == dtype):
            return dtype
    return None


def precision_arguments(precision: Precision) -> dict[str, Any]:
    """The same in the words of transformers' TrainingArguments."""
    import torch
    from transformers.utils import is_torch_tf32_available

    return {
        "use_cpu": not accelerated(),
        "bf16": precision.autocast == torch.bfloat16,
        "fp16": precision.autocast == torch.float16,
        "tf32": True if is_torch_tf32_available() else None,
    }
