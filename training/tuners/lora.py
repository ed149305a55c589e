"""LoRA through PEFT: which layers get an adapter, and what it starts with."""

from typing import Any

from engines.adapters.source import fetch_adapter, name_adapters
from engines.errors import InvalidRequest
from training.params.sft import SftParams
from training.params.tuner import LoraParams
from training.refusal import Refusal, not_built
from training.tuners.base import Tuner

INITIALISATIONS = {"true": True, "false": False, "gaussian": "gaussian"}
"""Value of `init_weights` -> PEFT's. Of `pissa` they are the same."""


class Lora(Tuner):
    name = "lora"
    makes = "adapter"
    reads = (frozenset(LoraParams.model_fields) - {"lorap_lr_ratio"}) | {
        "target_modules", "target_regex", "modules_to_save", "init_weights",
    }  # fmt: skip
    learning_rate = 1e-4

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = []
        if params.target_regex is not None and "target_modules" in params.model_fields_set:
            found.append(("target_modules", "target_regex goes before it: give one of the two"))
        if params.init_weights.startswith("pissa"):
            found += [(name, "not together with init_weights pissa") for name in _unfit_for_pissa(params)]
        elif params.init_weights not in INITIALISATIONS:
            found.append(("init_weights", not_built(params.init_weights, [*INITIALISATIONS, "pissa"])))
        return found


def _unfit_for_pissa(params: SftParams) -> list[str]:
    given = {"use_dora": params.use_dora, "use_rslora": params.use_rslora, "lora_bias": params.lora_bias != "none"}
    return [name for name, asked in given.items() if asked]


def add_lora(model: Any, params: SftParams) -> Any:
    """`model` with an adapter to train (a `PeftModel`): a new one, or the one that training goes on with.

    Raises InvalidRequest, InvalidAdapter.
    """
    from peft import PeftModel, get_peft_model

    if (trained := _trained_before(params)) is not None:
        return PeftModel.from_pretrained(model, trained, is_trainable=True)
    try:
        adapted = get_peft_model(model, lora_config(params))
    except ValueError as error:  # names that fit no module, or one of a kind that takes no adapter
        given = "target_regex" if params.target_regex else "target_modules"
        raise InvalidRequest(str(error).splitlines()[0], param=given) from error
    if params.lora_dtype is not None:
        _cast(adapted, params.lora_dtype)
    return adapted


def lora_config(params: SftParams) -> Any:
    """PEFT's LoraConfig. Raises InvalidRequest."""
    from peft import LoraConfig

    return LoraConfig(
        r=params.lora_rank,
        lora_alpha=params.lora_alpha,
        lora_dropout=params.lora_dropout,
        bias=params.lora_bias,
        target_modules=_targets(params),
        modules_to_save=list(params.modules_to_save) or None,
        use_dora=params.use_dora,
        use_rslora=params.use_rslora,
        init_lora_weights=INITIALISATIONS.get(params.init_weights, params.init_weights),
        task_type="CAUSAL_LM",
    )


def _targets(params: SftParams) -> str | list[str]:
    """PEFT takes a text for a regular expression, `all-linear` aside."""
    if params.target_regex is not None:
        return params.target_regex
    if params.target_modules == ("all-linear",):
        return "all-linear"
    if "all-linear" in params.target_modules:
        raise InvalidRequest("all-linear stands alone: name all modules, or use target_regex", param="target_modules")
    return list(params.target_modules)


def _trained_before(params: SftParams) -> str | None:
    """The folder of an adapter whose weights training goes on with; a whole checkpoint is left to the trainer."""
    if params.resume_from_checkpoint and params.resume_only_model:
        return params.resume_from_checkpoint
    sources = list(name_adapters(params.adapters).values())
    if len(sources) > 1:
        raise InvalidRequest("training goes on with one adapter", param="adapters")
    return str(fetch_adapter(sources[0], token=params.hub_token)) if sources else None


def _cast(model: Any, dtype: str) -> None:
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, dtype))
