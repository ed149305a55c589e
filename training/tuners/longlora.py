"""LongLoRA (Chen et al. 2023, arXiv:2309.12307): LoRA for texts that are longer than those that the model knows, with
embeddings and norms trained whole beside it, and an attention that costs less in training
(`training/layers/shifted_attention.py`). Afterwards the model has its own attention, and what comes of it is a LoRA
adapter like any other.
"""

from typing import Any

from engines.capabilities import AdapterSupport
from engines.errors import UnsupportedModel
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.tuners.base import Examples, Tuned
from training.tuners.lora import Lora

METHODS = frozenset({"sft", "pt", "seq_cls", "rm", "orpo", "simpo", "cpo"})
"""Those that ask the model only while it trains: with references and answers that are drawn, attention would differ."""
STARTS = ("true", "false", "gaussian")
"""Values of `init_weights`: the others depend on the base model's weights, beside which embeddings and norms change."""


class LongLora(Lora):
    name = "longlora"
    divisible = False
    peft_type = "LORA"

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = super().refusals(params)
        if params.method not in METHODS:
            message = f"its attention in training is not that of the model which {params.method} compares or draws with"
            found.append(("train_type", message))
        if params.packing:
            found.append(("packing", "its attention in training goes by the length of a sample: leave it out"))
        if params.sequence_parallel_size > 1:
            found.append(("sequence_parallel_size", "its attention in training is not divided: leave it out"))
        if params.attn_impl not in (None, "sdpa"):
            found.append(("attn_impl", "longlora has an attention of its own: leave it out"))
        if params.init_weights not in STARTS and not any(name == "init_weights" for name, _ in found):
            found.append(("init_weights", f"longlora begins with {', '.join(STARTS)}"))
        return found

    def unserved(self, params: SftParams, support: AdapterSupport) -> list[Refusal]:
        return [("train_type", "norms that longlora trains are not served beside the model")]

    def check_config(self, params: SftParams, config: Any) -> None:
        super().check_config(params, config)
        text = config.get_text_config()
        kinds = set(getattr(text, "layer_types", None) or {"full_attention"})
        windows = getattr(text, "sliding_window", None) is not None
        if kinds != {"full_attention"} or windows or getattr(text, "attn_logit_softcapping", None) is not None:
            message = f"the attention of {text.model_type} has a window or a form of its own, and longlora another one"
            raise UnsupportedModel(message, param="train_type")

    def attach(self, model: Any, params: SftParams, examples: Examples | None = None) -> Tuned:
        from training.layers import shifted_attention

        shifted_attention.register()
        try:
            model.set_attn_implementation(shifted_attention.NAME)
        except ValueError as error:
            message = f"the attention of {model.config.model_type} cannot be exchanged, as longlora needs it"
            raise UnsupportedModel(message, param="train_type") from error
        return super().attach(model, params, examples)

    def put_into(self, model: Any, config: Any, params: SftParams) -> Any:
        names = {name.rpartition(".")[2] for name, module in model.named_modules() if _is_whole(name, module)}
        config.modules_to_save = sorted({*names, *(config.modules_to_save or ())})
        return super().put_into(model, config, params)


def _is_whole(name: str, module: Any) -> bool:
    """Whether it is an embedding of tokens or a norm, by the reference's words for them."""
    last = name.rpartition(".")[2]
    return ("embed" in last or "norm" in last) and getattr(module, "weight", None) is not None
