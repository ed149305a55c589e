"""Adapters within layers (Houlsby et al. 2019, arXiv:1902.00751): behind attention and behind the MLP of each layer, a
bottleneck, x + W_up f(W_down x). `training/layers/bottleneck.py` has it."""

from typing import Any

from training.params.houlsby import HoulsbyParams
from training.params.sft import SftParams
from training.tuners.inserted import InsertingTuner


class Houlsby(InsertingTuner):
    name = "adapter"
    reads = frozenset(HoulsbyParams.model_fields)

    def settings(self, params: SftParams) -> dict[str, Any]:
        return {"adapter_length": params.adapter_length, "adapter_act": params.adapter_act}
