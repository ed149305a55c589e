"""Checkpoints of GPTQ, AWQ and HQQ, read by transformers as if they held plain weights: each layer's are unpacked as
soon as they are there. The packages that would compute with packed ones exclude versions of ours, and transformers 5 no
longer reads what HQQ has saved.

transformers has it for FP8 (`Fp8Dequantize`), and takes others through its registries of quantisation methods.
"""

import copy
from functools import partial
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

from engines.checkpoint import hqq
from engines.checkpoint.hqq import UnpackedByHqq, unpack_hqq
from engines.checkpoint.integers import hollow
from engines.checkpoint.packed import Unpacked as Layer
from engines.checkpoint.packed import layout_of, unpack_awq, unpack_gptq

METHOD = "unpacked"
HQQ = "hqq"
PARTS = ("qweight", "qzeros", "scales", "g_idx")
"""Tensors that a weight packed by GPTQ or AWQ consists of; the first is there if any is."""


def parts_of(packing: str) -> tuple[str, ...]:
    return hqq.PARTS if packing == HQQ else PARTS


def unpacked(config: Any, *, keep_integers: bool) -> Any:
    """`config` (a `PreTrainedConfig` of GPTQ, AWQ or HQQ) for a model that is to be unpacked. Raises UnsupportedModel.

    `keep_integers`: linear layers get what reads the integers that they were packed from, as `integers`, and weights
    that are `hollow`; None, and weights, where a kernel has no place for them.
    """
    told = config.quantization_config
    found = copy.deepcopy(config)
    found.quantization_config = {
        "quant_method": METHOD,
        "packing": layout_of(told),
        "group_size": told.get("group_size") or told.get("q_group_size") or -1,
        "keep_integers": keep_integers,
    }
    return found


@register_quantization_config(METHOD)
class Unpacked(QuantizationConfigMixin):  # type: ignore[misc]  # Any at our border
    def __init__(self, packing: str, group_size: int, keep_integers: bool, quant_method: str = METHOD) -> None:
        self.quant_method, self.packing, self.group_size = quant_method, packing, group_size
        self.keep_integers = keep_integers
        self.dequantize = True
        """For transformers: what is loaded is a plain model."""


class Unpack(ConversionOps):  # type: ignore[misc]  # Any at our border
    def __init__(self, packing: str, group_size: int, keep_integers: bool) -> None:
        self.packing, self.group_size, self.keep_integers = packing, group_size, keep_integers
        self.parts = parts_of(packing)

    def convert(self, input_dict: dict[str, Any], full_layer_name: str, model: Any, **more: Any) -> dict[str, Any]:
        """The tensors with weights in place of what these are packed in. `input_dict`: pattern of names -> tensors."""
        module, name = get_module_from_name(model, full_layer_name)
        converted: dict[str, Any] = {}
        for pattern, tensors in input_dict.items():
            before, _, part = pattern.removesuffix("$").rpartition(r"\.")
            if part not in self.parts:
                converted[pattern] = tensors
            elif part == self.parts[0]:
                target = rf"{before}\.weight$" if before else full_layer_name
                meant = getattr(module, name)
                if self.packing == HQQ and tensors[0].is_meta:  # its settings are numbers, which are not there
                    converted[target] = [torch.empty_like(meant, device="meta")]
                    continue
                parts = [input_dict.get(rf"{before}\.{each}$", [None] * len(tensors)) for each in self.parts]
                layers = [self._layer(*each) for each in zip(*parts, strict=True)]
                if self._keeps(module, layers):
                    module.integers = partial(self._integers, *(each[0] for each in parts))
                    converted[target] = [hollow(meant.shape, meant.dtype)]
                    continue
                weights = [layer.weights() for layer in layers]
                converted[target] = [
                    (weight if isinstance(module, Conv1D) else weight.T).to(meant.dtype).contiguous()
                    for weight in weights
                ]
        return converted

    def _keeps(self, module: Any, layers: list[Layer | UnpackedByHqq]) -> bool:
        """Whether a layer keeps its integers; one that would, and has none for a kernel, is marked by None."""
        if not self.keep_integers or type(module) is not torch.nn.Linear:
            return False
        module.integers = None
        return layers[0].integers() is not None

    def _integers(self, *parts: Any) -> Any:
        return self._layer(*parts).integers()

    def _layer(self, *parts: Any) -> Layer | UnpackedByHqq:
        if self.packing == HQQ:
            return unpack_hqq(dict(zip(self.parts, parts, strict=True)))
        qweight, qzeros, scales, g_idx = parts
        if qzeros is None or scales is None:
            raise ValueError("a layer has no scales or no zeros")
        if self.packing == "gemm":
            return unpack_awq(qweight, qzeros, scales, group_size=self.group_size)
        minus_one = self.packing != "gptq_v2"
        return unpack_gptq(qweight, qzeros, scales, g_idx, group_size=self.group_size, minus_one=minus_one)


@register_quantizer(METHOD)
class Unpacker(HfQuantizer):  # type: ignore[misc]  # Any at our border
    requires_calibration = True

    def update_weight_conversions(self, weight_conversions: list[Any]) -> list[Any]:
        """Unpack the parts of what the model puts together (experts) before it does, and all other layers' weights."""
        parts = parts_of(self.quantization_config.packing)
        layers = WeightConverter([rf"\.{part}$" for part in parts], ".weight", [self._unpack()])
        return [*map(self._unpacking, weight_conversions), layers]

    def _unpacking(self, conversion: Any) -> Any:
        sources = [each.removesuffix("$") for each in getattr(conversion, "source_patterns", ())]
        weights = [each.removesuffix(".weight").removesuffix("\\") for each in sources if each.endswith(".weight")]
        if not isinstance(conversion, WeightConverter) or not weights or len(conversion.target_patterns) > 1:
            return conversion
        parts = parts_of(self.quantization_config.packing)
        packed = [rf"{before}\.{part}$" for part in parts for before in weights]
        plain = [rf"{before}\.weight$" for before in weights]
        others = [each for each in conversion.source_patterns if not each.removesuffix("$").endswith(".weight")]
        found = WeightConverter(
            [*plain, *packed, *others], conversion._original_target_patterns, [self._unpack(), *conversion.operations]
        )
        found.scope_prefix, found.base_model_prefix = conversion.scope_prefix, conversion.base_model_prefix
        return found

    def _unpack(self) -> Unpack:
        told = self.quantization_config
        return Unpack(told.packing, told.group_size, told.keep_integers)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True
