"""How processes are to divide a training, and what does not go together with that: refused by name."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from training.methods import METHODS
from training.optimizers import optimizer_of
from training.params.refusal import Refusal, given
from training.params.sft import SftParams
from training.sharding.zero import AS_THE_TRAINER, configuration, stage
from training.tuners import TUNERS

SECTIONS = frozenset({*AS_THE_TRAINER, "zero_optimization", "steps_per_print", "wall_clock_breakdown", "dump_state"})
SECTIONS |= {"zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "communication_data_type"}
SECTIONS |= {"prescale_gradients", "gradient_predivide_factor"}
"""Parts of a DeepSpeed configuration that are read here. None names a file."""
OURS = ("optimizer", "scheduler")
"""Parts that our own parameters stand for."""
COUNTS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
BY_NUMBERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Values of `optim` that change each number by itself."""
PLAIN = ("true", "false", "gaussian")
"""Values of `init_weights` for which no weight is looked at."""


def refusals(params: SftParams) -> list[Refusal]:
    found = [*_of_deepspeed(params.deepspeed)] if params.deepspeed is not None else []
    if params.deepspeed is not None and params.fsdp is not None:
        found.append(("fsdp", "not together with deepspeed: give one of the two"))
    for name in ("deepspeed", "fsdp"):
        if getattr(params, name) is not None:
            found += _divided(params, name, whole=name == "deepspeed" and stage(params.deepspeed) < 3)
    if params.tensor_model_parallel_size > 1:
        found += _layers(params)
    if params.sequence_parallel_size > 1:
        found += _sequences(params)
    divided = given(params, ("deepspeed", "fsdp", "sequence_parallel_size"))
    if divided and params.dry_run:
        found.append(("dry_run", f"what {divided[0]} leaves to each process is not estimated"))
    return found


def _of_deepspeed(asked: str | dict[str, Any]) -> Iterator[Refusal]:
    if find_spec("deepspeed") is None:
        yield "deepspeed", "the package deepspeed is not installed here: pip install 'tuneserve[deepspeed]'"
    config = configuration(asked)
    for name in sorted(config.keys() - SECTIONS):
        why = "our own parameters say that" if name in OURS else "it is not supported in this version"
        yield "deepspeed", f"{name}: {why}: leave it out"
    for name in COUNTS:
        if config.get(name) != "auto":
            yield "deepspeed", f"{name}: our own parameters say that: leave it out, or say auto"
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3):
        yield "deepspeed", "zero_optimization needs a stage, 0, 1, 2 or 3"
        return
    for name in ("offload_optimizer", "offload_param"):
        if _part(zero, name).get("device") not in (None, "cpu", "none"):
            yield "deepspeed", f"zero_optimization.{name}: choose the device cpu or none"
    if zero["stage"] == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        yield (
            "deepspeed",
            "zero_optimization needs stage3_gather_16bit_weights_on_model_save true: else nothing is saved",
        )


def _part(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {"device": found}


def _divided(params: SftParams, name: str, *, whole: bool) -> Iterator[Refusal]:
    """What does not go together with `name`, by which processes divide weights, or where these stay `whole`, what the
    optimizer keeps of them."""
    tuner, method = TUNERS.get(params.train_type), METHODS.get(params.method)
    if tuner is not None and not tuner.divisible:
        choices = " or ".join(each.name for each in TUNERS.values() if each.divisible)
        yield "train_type", f"{tuner.name} is not divided among processes: with {name}, choose {choices}"
    if method is not None and not method.divisible:
        choices = ", ".join(each.name for each in METHODS.values() if each.divisible)
        yield name, f"{method.name} does not train with weights that are divided; {choices} do"
    # DeepSpeed makes an Adagrad of its own, of one group of weights, that no schedule reaches
    optims = [optim for optim in BY_NUMBERS if name != "deepspeed" or optim != "adagrad"]
    if params.optim not in optims:
        yield "optim", f"with {name}, choose {', '.join(optims)}"
    if params.optimizer is not None:
        yield "optimizer", f"whether one of your own goes together with {name} is not known: leave it out"
    if optimizer_of(params).whole and name != "deepspeed":
        yield optimizer_of(params).parameter, f"it looks at whole weights, which {name} divides"
    if method is not None and method.compares and (tuner is None or tuner.makes == "model" or params.adapters):
        yield name, f"{method.name} keeps what it began with, which is whole beside a new adapter only"
    if whole:
        return
    for other in given(params, ("quant_method",)):
        yield other, f"quantised weights are not divided among processes: not together with {name}"
    for other in given(params, ("predict_with_generate", "use_dora", "precompute_ref_log_probs", "ref_model")):
        yield other, f"it needs whole weights, which {name} divides among the processes"
    if params.init_weights not in PLAIN and params.train_type == "lora":
        yield "init_weights", f"{params.init_weights} needs whole weights, which {name} divides among the processes"


def _layers(params: SftParams) -> Iterator[Refusal]:
    name = "tensor_model_parallel_size"
    if params.method not in ("sft", "pt"):
        yield name, f"{params.method} does not divide layers; sft and pt do"
    yield from (each for each in _divided(params, name, whole=False) if each[0] != name)
    for other in given(params, ("deepspeed", "fsdp", "sequence_parallel_size")):
        yield other, f"not together with {name}: give one of the two"
    if params.streaming:
        yield name, "a stream is shared among all processes, not among groups of them: leave streaming out"
    if params.use_liger:
        yield "use_liger", f"its kernels compute whole layers, which {name} divides among the processes"


def _sequences(params: SftParams) -> Iterator[Refusal]:
    name = "sequence_parallel_size"
    if params.method not in ("sft", "pt"):
        yield name, f"{params.method} does not divide sequences; sft and pt do"
    if params.attn_impl not in (None, "sdpa"):
        yield "attn_impl", f"with {name} it is PyTorch's: leave it out"
    if params.streaming:
        yield name, "a stream is shared among all processes, not among groups of them: leave streaming out"
    if params.padding_side == "left":
        yield "padding_side", f"with {name}, samples are padded on the right"
    if params.acc_strategy == "seq":
        yield "acc_strategy", f"with {name}, no process sees a whole sequence: choose token"
    if params.router_aux_loss_coef:
        yield "router_aux_loss_coef", f"with {name}, no process sees a whole batch: set it to 0"
