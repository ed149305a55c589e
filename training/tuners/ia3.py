"""(IA)^3 (Liu et al. 2022, arXiv:2205.05638): the outputs of keys and values, and the inputs of the last layer of each
MLP, are scaled by vectors. The smallest of adapters."""

from typing import Any, ClassVar

from training.params.sft import SftParams
from training.tuners.adapter import saved_whole, targets
from training.tuners.base import Examples
from training.tuners.configured import Configured


class Ia3(Configured):
    name = "ia3"
    quantized_bases = frozenset({"bnb", "torchao"})
    config_class = "IA3Config"
    fields: ClassVar = {}

    def config(self, params: SftParams) -> Any:
        from peft import IA3Config

        chosen = "target_modules" in params.model_fields_set or params.target_regex is not None
        return IA3Config(target_modules=targets(params) if chosen else None, **saved_whole(params))

    def new(self, model: Any, params: SftParams, examples: Examples | None) -> Any:
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as MAPPING

        config = self.config(params)
        if config.target_modules is not None:  # else PEFT chooses both by the kind of model
            known = set(MAPPING.get(model.config.model_type, ()))
            named = config.target_modules
            config.feedforward_modules = known if isinstance(named, str) else known & set(named)
        return self.put_into(model, config, params)
