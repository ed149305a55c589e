"""LoRA (Hu et al. 2021, arXiv:2106.09685): a low-rank matrix beside each weight."""

from typing import Any

from engines.capabilities import AdapterSupport
from training.params.refusal import Refusal, not_supported
from training.params.sft import SftParams
from training.params.tuner import LoraParams
from training.tuners import pissa
from training.tuners.adapter import WHERE, AdapterTuner, saved_whole, targets
from training.tuners.base import Examples, Tuned

INITIALISATIONS = {"true": True, "false": False, "gaussian": "gaussian"}
"""Value of `init_weights` -> PEFT's. Those of PiSSA are the same."""


class Lora(AdapterTuner):
    name = "lora"
    divisible = True
    reads = WHERE | {"init_weights"} | (frozenset(LoraParams.model_fields) - {"lorap_lr_ratio"})
    quantized_bases = frozenset({"bnb", "hqq", "torchao"})

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = super().refusals(params)
        if pissa.asked_for(params):
            return found + pissa.refusals(params)
        if params.init_weights not in INITIALISATIONS:
            found.append(("init_weights", not_supported(params.init_weights, [*INITIALISATIONS, pissa.INNER])))
        return found

    def unserved(self, params: SftParams, support: AdapterSupport) -> list[Refusal]:
        found = []
        if params.use_dora:
            found.append(("use_dora", "DoRA scales the base model's weights themselves"))
        if params.lora_bias != "none":
            found.append(("lora_bias", "adapters that change biases are not served"))
        rank = params.lora_rank * (2 if pissa.asked_for(params) else 1)  # what its plain form has
        if rank > support.max_rank:
            found.append(("lora_rank", f"{rank} is above the {support.max_rank} served (max_lora_rank)"))
        return found

    def config(self, params: SftParams) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=params.lora_rank,
            lora_alpha=params.lora_alpha,
            lora_dropout=params.lora_dropout,
            bias=params.lora_bias,
            target_modules=targets(params),
            use_dora=params.use_dora,
            use_rslora=params.use_rslora,
            init_lora_weights=INITIALISATIONS.get(params.init_weights, params.init_weights),
            **saved_whole(params),
        )

    def begins_as_base(self, params: SftParams) -> bool:
        return params.init_weights in ("true", "gaussian")

    def shape(self, model: Any) -> dict[str, Any]:
        config = model.peft_config["default"]
        scales = {"lora_rank": config.r, "lora_alpha": config.lora_alpha}
        return {
            **super().shape(model),
            **({} if config.rank_pattern or config.alpha_pattern else scales),  # else each layer has its own
            "lora_dropout": config.lora_dropout,
            "lora_bias": config.bias,
            "use_dora": config.use_dora,
            "use_rslora": config.use_rslora,
        }

    def attach(self, model: Any, params: SftParams, examples: Examples | None = None) -> Tuned:
        tuned = super().attach(model, params, examples)
        return pissa.Pissa(tuned.model) if pissa.started_so(tuned.model) else tuned

    def new(self, model: Any, params: SftParams, examples: Examples | None) -> Any:
        adapted = super().new(model, params, examples)
        if params.lora_dtype is not None:
            _cast(adapted, params.lora_dtype)
        return adapted


def _cast(model: Any, dtype: str) -> None:
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, dtype))
