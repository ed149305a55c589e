"""Bone (Kang and Yin 2024, arXiv:2409.15371), PEFT's MiSS: a matrix, repeated along the rows of the weight, is added
where LoRA has the product of two; by `init_weights bat`, each block of the weight times such a matrix."""

from typing import Any, ClassVar

from training.params.refusal import Refusal, not_supported
from training.params.sft import SftParams
from training.tuners.configured import Configured

STARTS: dict[str, Any] = {"true": True, "false": False, "bat": "bat"}
"""Value of `init_weights` -> PEFT's."""


class Bone(Configured):
    name = "bone"
    quantized_bases = frozenset({"bnb", "hqq"})
    conv1d = False
    config_class = "MissConfig"
    fields: ClassVar = {"lora_rank": "r", "lora_dropout": "miss_dropout", "init_weights": "init_weights"}
    size = "lora_rank"

    @property
    def peft_type(self) -> str:
        return "MISS"

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = super().refusals(params)
        if params.init_weights not in STARTS:
            found.append(("init_weights", not_supported(params.init_weights, STARTS)))
        return found

    def begins_as_base(self, params: SftParams) -> bool:
        return params.init_weights != "false"

    def settings(self, params: SftParams) -> dict[str, Any]:
        return super().settings(params) | {"init_weights": STARTS[params.init_weights]}

    def shape(self, model: Any) -> dict[str, Any]:
        shape = super().shape(model)
        return shape | {"init_weights": str(shape["init_weights"]).lower()}
