"""Quantise the linear layers of a model, as transformers reads the weights of each.

The output head and the embeddings stay as they are, as the libraries have it by default: `get_keys_to_not_convert`.
"""

import copy
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from engines.checkpoint.quantization import Quantization, install_command, quantized_by
from engines.errors import UnsupportedModel

if TYPE_CHECKING:
    import torch

    from engines.checkpoint.integers import Integers

# A line for each layer of 8 bits in each forward pass, where the model is not in float16.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

PACKED = ("Params4bit", "Int8Params")
"""Classes of bitsandbytes' parameters."""
SCALES = ("weight_", "input_", "output_")
"""How what compressed-tensors keeps beside a layer's weight and bias begins."""


def transformers_settings(
    quantization: Quantization, dtype: "torch.dtype | str", classes: Any, config: Any
) -> dict[str, Any]:
    """What `from_pretrained` is told besides. `dtype`: the model's; `classes`: one of transformers' Auto classes.
    Raises UnsupportedModel."""
    if quantization.method == "hqq":
        from engines.checkpoint.hqq_as_read import ByHqq

        with _imported(quantization.method):
            import hqq.core.quantize  # noqa: F401 (before the model is read)
        return {"quantization_config": ByHqq(quantization.bits, quantization.axis)}
    if quantization.method == "torchao":
        return {"quantization_config": torchao_config(quantization.bits, classes, config)}
    from transformers import BitsAndBytesConfig

    if quantization.bits == 8:
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=quantization.compute_dtype or ("float32" if dtype == "auto" else dtype),
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_quant_storage=quantization.storage,
    )
    return {"quantization_config": settings}


def forget_quantizing(model: Any, quantization: Quantization) -> None:
    """Have transformers forget what it has quantised, where that is in the layers themselves."""
    if quantization.method in ("hqq", "torchao"):
        model.hf_quantizer.remove_quantization_config(model)


@contextmanager
def _imported(method: Literal["hqq", "torchao"]) -> Iterator[None]:
    """Raises UnsupportedModel where its package cannot be."""
    try:
        yield
    except ImportError as error:
        message = f"{method} cannot be imported ({error}): {install_command(method)}"
        raise UnsupportedModel(message, param="quant_method") from error


def let_go_of_file(model: Any) -> None:
    """Give the weights on a CPU that stay as they are memory of their own: they may lie in the checkpoint's file, which
    is mapped, and keep all of it in memory, with what the others were made of."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and not is_quantized(tensor) and _is_lent(tensor):
            tensor.data = tensor.data.clone()


def _is_lent(tensor: "torch.Tensor") -> bool:
    """Whether its memory is none that torch has taken itself, and could resize."""
    return not tensor.untyped_storage().resizable()


def is_quantized(tensor: Any) -> bool:
    """Whether a parameter is not the numbers that it stands for, so that its type must not be changed."""
    if type(tensor).__name__ in PACKED:
        return True
    return not tensor.is_floating_point() or type(tensor).__module__.startswith("torchao.")


def quantized_layers(model: Any) -> dict[str, Any]:
    """The layers whose weights are quantised, by their paths."""
    return {path: layer for path, layer in model.named_modules() if any(map(is_quantized, layer.parameters(False)))}


def dequantize(model: Any) -> Any:
    """The model with the weights that the quantised ones stand for, in the type of the others. `model` is used up."""
    import torch

    dtype = model.dtype
    if getattr(model, "hf_quantizer", None) is not None:
        return model.dequantize(dtype)
    for path, layer in quantized_layers(model).items():
        weight = layer.dequantize() if hasattr(layer, "dequantize") else layer.weight.dequantize()
        plain = torch.nn.Linear(*reversed(weight.shape), bias=layer.bias is not None, device="meta")
        plain.weight = torch.nn.Parameter(weight.detach().to(dtype))
        if layer.bias is not None:
            plain.bias = torch.nn.Parameter(layer.bias.detach())
        model.set_submodule(path, plain)
    return model


def unpack(model: Any) -> None:
    """Have a model of compressed-tensors unpack its weights, which it would do in its first forward pass: PEFT looks
    for them before that."""
    import torch

    if quantized_by(model.config) == "compressed-tensors":
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))


def forget_packing(model: Any, *, keep_integers: bool) -> None:
    """Have a model whose weights were unpacked be a plain one, also as it is saved: compressed-tensors leaves its
    scales in layers, and transformers would undo what it did as it loaded. `keep_integers`: see `unpacked`."""
    from engines.checkpoint import integers

    for layer in model.modules():
        if hasattr(layer, "quantization_scheme"):
            _unpack_layer(layer, keep_integers=keep_integers)
            for name in [name for name, _ in layer.named_parameters(recurse=False) if name.startswith(SCALES)]:
                delattr(layer, name)
            vars(layer).pop("forward", None)
            del layer.quantization_scheme, layer.quantization_status
    if (left := getattr(model, "hf_quantizer", None)) is not None:
        left.compressor.remove_decompression_hook(model)
        left.remove_quantization_config(model)
    if keep_integers:
        integers.keep_integers(model)
    model._weight_conversions = None


def _unpack_layer(layer: Any, *, keep_integers: bool) -> None:
    """Give a layer of compressed-tensors, if it is still packed, plain weights; or hollow ones, and what reads its
    integers."""
    import torch

    from engines.checkpoint.integers import hollow

    weights = layer.quantization_scheme.weights
    if keep_integers and type(layer) is torch.nn.Linear and weights is not None and weights.type == "int":
        packed = _copy(layer)
        layer.integers = None if _integers(packed) is None else partial(_integers, packed)
        if layer.integers is not None:
            shape = (layer.out_features, layer.in_features)
            layer.weight = torch.nn.Parameter(hollow(shape, layer.weight_scale.dtype), False)
            return
    if _is_packed(layer):
        from compressed_tensors.compressors import decompress_module

        decompress_module(layer)


def _is_packed(layer: Any) -> bool:
    return getattr(layer.quantization_status, "value", None) == "compressed"


def _integers(layer: Any) -> "Integers | None":
    """Those of a layer of compressed-tensors, packed or not."""
    import torch
    from compressed_tensors.compressors import decompress_module
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    from engines.checkpoint.integers import integers, integers_behind

    weights, scales = layer.quantization_scheme.weights, layer.weight_scale
    if not _is_packed(layer) or getattr(layer, "weight_g_idx", None) is not None:
        plain = _copy(layer)
        if _is_packed(layer):
            decompress_module(plain)
        return integers_behind(plain.weight, weights.num_bits, scales, getattr(plain, "weight_zero_point", None))
    zeros = None if weights.symmetric else layer.weight_zero_point
    if hasattr(layer, "weight_packed"):
        codes = unpack_from_int32(layer.weight_packed, weights.num_bits, torch.Size(layer.weight_shape.tolist()))
        if zeros is not None:
            zeros = unpack_from_int32(zeros, weights.num_bits, scales.shape, packed_dim=0)
    else:
        codes = layer.weight
    return integers(weights.num_bits, codes, scales, torch.zeros_like(scales) if zeros is None else zeros)


def _copy(layer: Any) -> Any:
    """The same tensors, in another layer."""
    found = copy.copy(layer)
    found._parameters, found._buffers = dict(layer._parameters), dict(layer._buffers)
    return found


def keep_unpacked(model: Any) -> None:
    """Where a CPU computes bfloat16, the first forward pass in evaluation packs 4-bit weights anew, and rounds their
    scales to bfloat16. Without quantised scales there is no way back, and what is saved afterwards is broken
    (bitsandbytes 0.50): so they stay as they are."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def torchao_config(bits: int, classes: Any, config: Any) -> Any:
    """transformers' for a model with the configuration `config`. `classes`: one of its Auto classes. Raises
    UnsupportedModel."""
    import torch

    with torch.device("meta"):
        widths = [layer.in_features for _, layer in linears_to_quantize(classes.from_config(copy.deepcopy(config)))]
    with _imported("torchao"):
        from transformers import TorchAoConfig

        return TorchAoConfig(torchao_settings(bits, widths))


def torchao_settings(bits: int, widths: Iterable[int]) -> Any:
    """torchao's configuration for linear layers with these numbers of inputs. A scale is for a row of 8-bit weights,
    and for a group of 4-bit ones."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerAxis, PerGroup

    if bits == 8:
        return Int8WeightOnlyConfig()
    group = group_of(math.gcd(*widths), 32)
    return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0) if group is None else PerGroup(group))


def linears_to_quantize(model: Any) -> Iterator[tuple[str, Any]]:
    """The layers that bitsandbytes would quantise, by their paths."""
    import torch
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = get_keys_to_not_convert(model)
    for path, module in model.named_modules():
        if type(module) is torch.nn.Linear and should_convert_module(path, kept):
            yield path, module


def group_of(size: int, most: int) -> int | None:
    """How many weights share a scale: a divisor of `size`, `most` where that is one. None: there is none to choose."""
    return next((each for each in (64, 32, 16, 8) if each <= most and size % each == 0), None)
