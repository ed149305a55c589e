"""What cannot be trained on a base model that is quantised while it is loaded."""

from collections.abc import Iterator

from engines.checkpoint.quantization import quantization_conflicts
from training.methods import METHODS
from training.params.refusal import Refusal
from training.params.rlhf import RlhfParams
from training.params.sft import SftParams
from training.tuners import TUNERS

NOT_FROM_WEIGHTS = ("true", "false", "gaussian", "loftq")
"""Values of `init_weights` for which no weight of the model is looked at as it is then."""


def refusals(params: SftParams) -> list[Refusal]:
    if conflicts := quantization_conflicts(params):
        return conflicts
    return (
        []
        if params.quant_method is None
        else [*_of_tuner(params), *_of_adapter(params), *_of_rollouts(params), *_of_processes(params)]
    )


def _of_tuner(params: SftParams) -> Iterator[Refusal]:
    tuner, method = TUNERS.get(params.train_type), params.quant_method
    if tuner is None or method in tuner.quantized_bases:
        return
    others = " or ".join(name for name, each in TUNERS.items() if method in each.quantized_bases)
    if tuner.makes == "model":
        yield "quant_method", f"train_type {tuner.name} trains weights, which cannot be quantised: choose {others}"
    else:
        yield "quant_method", f"train_type {tuner.name} does not learn on weights of {method}: choose {others}"


def _of_adapter(params: SftParams) -> Iterator[Refusal]:
    if params.init_weights not in NOT_FROM_WEIGHTS and params.train_type == "lora":
        reason = f"{params.init_weights} begins with the model's weights, which are quantised: leave it out"
        yield "init_weights", reason
    if params.use_dora and (params.quant_method, params.quant_bits) == ("bnb", 8):
        yield "use_dora", "PEFT's DoRA fails on 8-bit weights of bitsandbytes: choose quant_bits 4"


def _of_rollouts(params: SftParams) -> Iterator[Refusal]:
    method = METHODS.get(params.method)
    if isinstance(params, RlhfParams) and params.method == "gkd" and params.seq_kd:
        yield "seq_kd", "a quantised teacher writes no answers: leave it out, or quant_method"
    if method is None or not method.draws(params):
        return
    if params.train_type != "lora" or params.use_dora or params.lora_bias != "none":
        reason = "answers are drawn by the quantised base with the adapter beside it, which only plain LoRA can be"
        yield "quant_method", reason


def _of_processes(params: SftParams) -> Iterator[Refusal]:
    if params.quant_method == "torchao" and params.deepspeed is not None:
        yield "deepspeed", "it cannot move weights of torchao: leave it out, or choose quant_method bnb"
