"""HQQ for a model that transformers loads: the weights of each linear layer are quantised as they are read.

transformers has the like for bitsandbytes and torchao, and no longer for HQQ.
"""

from typing import Any

from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from engines.checkpoint.integers import hollow
from engines.checkpoint.quantize import group_of, linears_to_quantize

METHOD = "hqq_as_read"


@register_quantization_config(METHOD)
class ByHqq(QuantizationConfigMixin):  # type: ignore[misc]  # Any at our border
    def __init__(self, bits: int, axis: int, quant_method: str = METHOD) -> None:
        self.quant_method, self.bits, self.axis = quant_method, bits, axis

    def layer(self, weight: Tensor) -> Any:
        """An `HQQLinear` without a bias, of `weight` (outputs, inputs)."""
        from hqq.core.quantize import BaseQuantizeConfig, HQQBackend, HQQLinear

        HQQLinear.set_backend(HQQBackend.PYTORCH)
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        group = group_of(weight.numel(), 64) or weight.numel()
        settings = BaseQuantizeConfig(nbits=self.bits, group_size=group, axis=self.axis)
        made = HQQLinear(plain, settings, compute_dtype=weight.dtype, device=str(weight.device))
        return made.requires_grad_(False)


class _Quantize(ConversionOps):  # type: ignore[misc]  # Any at our border
    def __init__(self, settings: ByHqq, layers: dict[str, Any]) -> None:
        self.settings, self.layers = settings, layers

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, model: Any, missing_keys: set[str], **more: Any
    ) -> dict[str, Any]:
        """Have the layer made, and leave nothing of its weight to be loaded."""
        [weight] = input_dict.values()
        weight = weight[0] if isinstance(weight, list) else weight
        path = full_layer_name.removesuffix(".weight")
        self.layers[path] = self.settings.layer(weight)
        left = nn.Parameter(hollow(weight.shape, weight.dtype), requires_grad=False)
        left._is_hf_initialized = True
        model.get_submodule(path).weight = left
        missing_keys.discard(full_layer_name)
        return {}


@register_quantizer(METHOD)
class Quantizer(HfQuantizer):  # type: ignore[misc]  # Any at our border
    def __init__(self, quantization_config: ByHqq, **more: Any) -> None:
        super().__init__(quantization_config, **more)
        self._wanted: frozenset[str] = frozenset()
        self._layers: dict[str, Any] = {}

    def _process_model_before_weight_loading(self, model: Any, **more: Any) -> None:
        self._wanted = frozenset(f"{path}.weight" for path, _ in linears_to_quantize(model))

    def param_needs_quantization(self, model: Any, param_name: str, **more: Any) -> bool:
        return param_name in self._wanted

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self.quantization_config, self._layers)

    def _process_model_after_weight_loading(self, model: Any, **more: Any) -> None:
        """Put the layers into their places; one that the checkpoint has no weights for is made now."""
        for path, plain in list(linears_to_quantize(model)):
            layer = self._layers.pop(path, None) or self.quantization_config.layer(plain.weight.detach())
            layer.bias = None if plain.bias is None else plain.bias.detach().clone()
            model.set_submodule(path, layer)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True
