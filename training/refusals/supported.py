"""Which parameters of a task are supported. One that nothing reads is refused, never ignored."""

from functools import cache

from pydantic.fields import FieldInfo

from engines.params.about import DEPLOY, NOT_SUPPORTED, about, facts, unsupported_choice
from engines.params.base import Params
from engines.params.common import BaseParams
from engines.params.template import template_conflicts
from training import methods, optimizers, tuners
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.params.task import TASKS, Task, params_of
from training.refusals import libraries, processes, quantized
from training.refusals.idle import idle

CHECKPOINTING = frozenset({"use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop"})
"""Settings of torch.utils.checkpoint that JSON can say."""


@cache
def supported(params: type[Params]) -> frozenset[str]:
    """The parameters that the task with these parameters reads, or a method, a tuner or an optimizer in it."""
    name, task = next((name, task) for name, task in TASKS.items() if params_of(task) is params)
    read = frozenset(
        each for each, said in facts(params) if said.read_by(task.reads_as) or (task.runs_engine and bool(said.engines))
    )
    if not issubclass(params, SftParams):
        return read
    return read.union(
        *(method.reads for method in methods.methods_of(name).values()),
        *(tuner.reads for tuner in tuners.TUNERS.values()),
        *(optimizer.reads for optimizer in optimizers.OPTIMIZERS),
    )


def unsupported(params: type[Params]) -> frozenset[str]:
    """Those that are refused in any value but their default."""
    return frozenset(params.model_fields) - supported(params)


def refusals(task: Task) -> list[Refusal]:
    """Each parameter that was given in vain, and why."""
    given = sorted(task.params.model_fields_set)
    found = [(name, reason) for name in given if (reason := _refusal(task.params, name))] + task.refusals()
    params = task.training
    if params is None:
        return found
    for each in (tuners, quantized, optimizers, methods):
        found += each.refusals(params)
    return found + _unfit(params) + _unfit_types(params) + idle(params) + _of_the_machine(params)


def _of_the_machine(params: SftParams) -> list[Refusal]:
    return libraries.refusals(params) + processes.refusals(params)


def _refusal(params: Params, name: str) -> str | None:
    field, value = type(params).model_fields[name], getattr(params, name)
    if name in supported(type(params)):
        return unsupported_choice(field, value)
    if value == field.get_default(call_default_factory=True):
        return None
    return about(field).not_in_training or _read_elsewhere(name, field) or NOT_SUPPORTED


def _read_elsewhere(name: str, field: FieldInfo) -> str | None:
    """Which commands read a parameter that this one does not. One name may mean two things: then the types differ."""
    known = {task: params_of(TASKS[task]) for task in TASKS}
    readers = [task for task, params in known.items() if _is_same(params, name, field) and name in supported(params)]
    if _is_same(BaseParams, name, field) and (about(field).engines or about(field).read_by(DEPLOY)):
        readers.append("deploy")
    if not readers:
        return None
    *first, last = readers
    return (
        f"only {', '.join(first)} and {last} read it: leave it out" if first else f"only {last} reads it: leave it out"
    )


def _is_same(params: type[Params], name: str, field: FieldInfo) -> bool:
    return name in params.model_fields and params.model_fields[name].annotation == field.annotation


def _unfit(params: SftParams) -> list[Refusal]:
    """Parameters that do not go together, whatever is trained and how."""
    found = template_conflicts(params)
    if params.rope_scaling is not None and params.max_length is None:
        found.append(("rope_scaling", "say as max_length how many tokens the model is to take"))
    if params.adapters and params.resume_only_model:
        found.append(("adapters", "with resume_only_model, resume_from_checkpoint names what training begins with"))
    if params.resume_only_model and not params.resume_from_checkpoint:
        found.append(("resume_only_model", "give the checkpoint as resume_from_checkpoint"))
    if params.streaming and params.max_steps < 1:
        found.append(("max_steps", "streamed data has no known length: say how many steps to train"))
    for name in ("save_strategy", "eval_strategy"):
        if params.streaming and getattr(params, name) == "epoch":
            found.append((name, "streamed data has no epochs: choose steps"))
    if params.interleave_prob is not None and len(params.interleave_prob) != len(params.dataset):
        found.append(("interleave_prob", f"there must be one for each of the {len(params.dataset)} data sets"))
    for name in sorted((params.gradient_checkpointing_kwargs or {}).keys() - CHECKPOINTING):
        choices = ", ".join(sorted(CHECKPOINTING))
        found.append(("gradient_checkpointing_kwargs", f"there is no setting {name!r}; there are {choices}"))
    return found


def _unfit_types(params: SftParams) -> list[Refusal]:
    """Types that do not go together."""
    if params.bf16 and params.fp16:
        return [("fp16", "not together with bf16")]
    for name, other in (("bf16", "float16"), ("fp16", "bfloat16")):
        if getattr(params, name) and params.torch_dtype == other:
            return [(name, f"not together with torch_dtype {other}")]
    if params.fp16 is False and params.torch_dtype == "float16":
        return [("fp16", "weights that learn in float16 lose their gradients: leave it out")]
    if params.lora_dtype == "float16":
        return [("lora_dtype", "weights that learn in float16 lose their gradients: choose bfloat16 or float32")]
    return []
