"""LoRA-GA (Wang et al. 2024, arXiv:2407.05000): the adapter starts with the largest singular directions of the
gradients of the weights beside it, so that its first step is near to one of full training."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar

from engines.errors import InvalidRequest
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.params.tuner import LoraGaParams
from training.tuners.base import Examples
from training.tuners.starts.base import Start, name_linears, on_accelerator

SCALES = {"gd": "gd_scale", "unit": "unit", "stable": "stable", "weightS": "weight_svd"}
"""The paper's names -> PEFT's."""


class LoraGa(Start):
    reads: ClassVar = frozenset(LoraGaParams.model_fields)

    def __init__(self) -> None:
        super().__init__("lora-ga", "lora_ga", takes_out=True, uses_data=True)

    def refusals(self, params: SftParams) -> Iterator[Refusal]:
        yield from super().refusals(params)
        if "lora_ga_stable_gamma" in params.model_fields_set and params.lora_ga_scale != "stable":
            yield "lora_ga_stable_gamma", "only lora_ga_scale stable reads it"

    def settings(self, params: SftParams) -> dict[str, Any]:
        from peft.tuners.lora.config import LoraGAConfig

        config = LoraGAConfig(
            direction=params.lora_ga_direction,
            scale=SCALES[params.lora_ga_scale],
            stable_gamma=params.lora_ga_stable_gamma,
        )
        return {"lora_ga_config": config}

    def prepare(self, model: Any, config: Any, params: SftParams, examples: Examples | None) -> None:
        from peft.tuners.lora.loraga import get_target_modules, preprocess_loraga

        assert examples is not None, "refused otherwise"
        batches = [*islice(examples(params.lora_ga_batch_size, params.lora_ga_max_length), params.lora_ga_iters)]
        if not batches:
            message = "no sample has anything to learn within so many tokens"
            raise InvalidRequest(message, param="lora_ga_max_length")
        name_linears(config, model)
        for name, layer in get_target_modules(model, config):
            if 2 * config.r > min(layer.weight.shape):
                there = min(layer.weight.shape)
                message = f"LoRA-GA takes twice as many directions, and {name} has {there}: choose less"
                raise InvalidRequest(message, param="lora_rank")

        def learn() -> None:
            for batch in batches:
                moved = {name: tensor.to(model.device) for name, tensor in batch.items()}
                model(**moved, use_cache=False).loss.backward()

        on_accelerator(model)
        preprocess_loraga(model, config, learn)
