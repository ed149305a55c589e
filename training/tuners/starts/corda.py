"""CorDA (Yang et al. 2024, arXiv:2406.05223): the adapter starts with the directions of each weight that matter most to
what its layer gets from the training's data."""

from itertools import islice
from typing import Any

from engines.errors import InvalidRequest
from training.params.sft import SftParams
from training.tuners.base import Examples
from training.tuners.starts.base import Start, name_linears, on_accelerator

SAMPLES = 256
"""As many as PEFT's own example takes."""
LONGEST = 2048
"""Tokens of a sample, likewise."""


class Corda(Start):
    def __init__(self) -> None:
        super().__init__("corda", takes_out=True, uses_data=True)

    def settings(self, params: SftParams) -> dict[str, Any]:
        from peft.tuners.lora.config import CordaConfig

        return {"corda_config": CordaConfig(corda_method="ipm")}

    def prepare(self, model: Any, config: Any, params: SftParams, examples: Examples | None) -> None:
        from peft.tuners.lora.corda import preprocess_corda, target_modules

        assert examples is not None, "refused otherwise"
        name_linears(config, model)
        for name, layer in target_modules(model, config):
            if config.r > min(layer.weight.shape):
                message = f"{name} has {min(layer.weight.shape)} directions: choose less"
                raise InvalidRequest(message, param="lora_rank")

        def run() -> None:
            for batch in islice(examples(1, LONGEST), SAMPLES):  # PEFT knows batches of one sample only
                model(input_ids=batch["input_ids"].to(model.device), use_cache=False)

        on_accelerator(model)
        preprocess_corda(model, config, run)
