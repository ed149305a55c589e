"""LoRA (Hu et al. 2021, arXiv:2106.09685): a low-rank matrix beside each weight."""

from copy import deepcopy
from typing import Any

from engines.capabilities import AdapterSupport
from engines.errors import InvalidRequest
from training.params.refusal import Refusal, not_supported, read_by_others_only
from training.params.sft import SftParams
from training.params.tuner import LoraParams
from training.tuners.adapter import WHERE, AdapterTuner, conv1d_asked, saved_whole, targets
from training.tuners.base import Examples, Tuned
from training.tuners.starts import STARTS, start_of
from training.tuners.starts.base import Start
from training.tuners.starts.taken_out import TakenOut, taken_out

OF_STARTS = {name: start.reads for name, start in STARTS.items()}
"""Value of `init_weights` -> the parameters that only it reads."""


class Lora(AdapterTuner):
    name = "lora"
    divisible = True
    reads = WHERE.union({"init_weights"}, frozenset(LoraParams.model_fields) - {"lorap_lr_ratio"}, *OF_STARTS.values())
    quantized_bases = frozenset({"bnb", "hqq", "torchao"})

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = super().refusals(params)
        start = start_of(params.init_weights)
        if start is None:
            return [*found, ("init_weights", not_supported(params.init_weights, STARTS))]
        readers = OF_STARTS | {start.name: start.reads}
        return found + read_by_others_only(params, "init_weights", start.name, readers) + [*start.refusals(params)]

    def check_config(self, params: SftParams, config: Any) -> None:
        from engines.checkpoint.structure import has_biases

        if params.lora_bias != "none" and not has_biases(config):
            message = f"{config.get_text_config().model_type} has no biases that could be trained: leave it out"
            raise InvalidRequest(message, param="lora_bias")
        start = _start(params)
        if not start.conv1d and (path := conv1d_asked(self.config(params), config)) is not None:
            message = f"{start.name} begins with linear layers only, and {path} of {config.model_type} is a Conv1D"
            raise InvalidRequest(f"{message}: choose another, or name other layers", param="init_weights")

    def unserved(self, params: SftParams, support: AdapterSupport) -> list[Refusal]:
        found = []
        if params.use_dora:
            found.append(("use_dora", "DoRA scales the base model's weights themselves"))
        if params.lora_bias != "none":
            found.append(("lora_bias", "adapters that change biases are not served"))
        rank = params.lora_rank * _start(params).widens
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
            init_lora_weights=_start(params).value,
            **_start(params).settings(params),
            **saved_whole(params),
        )

    def begins_as_base(self, params: SftParams) -> bool:
        return _start(params).begins_as_base

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
        start = taken_out(tuned.model)
        return tuned if start is None else TakenOut(tuned.model, start)

    def new(self, model: Any, params: SftParams, examples: Examples | None) -> Any:
        config, start = self.config(params), _start(params)
        if "lora_dropout" not in params.model_fields_set and not _takes_dropout(model, config):
            config.lora_dropout = 0.0
        start.prepare(model, config, params, examples)
        adapted = self.put_into(model, config, params)
        start.finish(adapted, params, examples)
        if params.lora_dtype is not None:
            _cast(adapted, params.lora_dtype)
        return adapted


def _start(params: SftParams) -> Start:
    start = start_of(params.init_weights)
    assert start is not None, "refused otherwise"
    return start


def _takes_dropout(model: Any, config: Any) -> bool:
    """Whether PEFT can put the adapter of `config` into `model` with its dropout: not beside the weights of experts."""
    import torch
    from peft import get_peft_model

    if not any(weight.dim() == 3 for name, weight in model.named_parameters() if "experts" in name):
        return True
    with torch.device("meta"):
        bare = type(model)._from_config(deepcopy(model.config))
        try:
            get_peft_model(bare, deepcopy(config))
        except ValueError as error:
            return "lora_dropout" not in str(error)
    return True


def _cast(model: Any, dtype: str) -> None:
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, dtype))
