"""What an export needs and was not given, and its parameters that do not go together."""

from collections.abc import Iterator

from training.params.export import ExportParams
from training.params.export_quantization import export_conflicts
from training.params.refusal import Refusal, given

WAYS = ("merge_lora", "quant_method", "to_gguf", "to_ollama", "to_peft_format", "push_to_hub")
UNQUANTIZED = ("f32", "f16", "bf16")
"""Types of GGUF that adapters have, too."""
OF_WEIGHTS = ("torch_dtype", "max_shard_size")
"""Parameters of how a model's weights are written."""


def conflicts(params: ExportParams) -> list[Refusal]:
    """Each parameter at fault, and why."""
    return [*_missing(params), *_of_adapters(params), *_of_forms(params), *export_conflicts(params)]


def _missing(params: ExportParams) -> Iterator[Refusal]:
    if not params.model and not params.adapters:
        yield "model", "name the model to export, or adapters"
    if not any(getattr(params, name) for name in WAYS):
        *others, last = WAYS
        yield "merge_lora", f"say what is to be made of it: give {', '.join(others)} or {last}"
    if params.merge_lora and not params.adapters:
        yield "adapters", "name the adapter to merge"


def _of_adapters(params: ExportParams) -> Iterator[Refusal]:
    """Where adapters are not merged: there is no model with them that could be changed."""
    if not params.adapters or params.merge_lora:
        return
    if params.quant_method is not None:
        yield "merge_lora", "what is quantised is a whole model: set it, so that the adapter is part of one"
    if len(params.adapters) > 1:
        yield "adapters", "one is exported at a time; merge_lora makes one model of several"
    if params.to_gguf is not None and params.to_gguf not in UNQUANTIZED and not params.to_ollama:
        yield "to_gguf", f"a GGUF file of an adapter is {', '.join(UNQUANTIZED[:-1])} or {UNQUANTIZED[-1]}"
    if not params.to_ollama:
        yield from ((name, "an adapter that is not merged keeps its weights") for name in given(params, OF_WEIGHTS))


def _of_forms(params: ExportParams) -> Iterator[Refusal]:
    """Forms of which one excludes another."""
    gguf = params.to_gguf is not None or params.to_ollama
    if gguf and params.quant_method is not None:
        yield "quant_method", "to_gguf says how the weights of a GGUF file are quantised"
    if gguf and "max_shard_size" in given(params, OF_WEIGHTS):
        yield "max_shard_size", "a GGUF file holds all weights"
    if not params.to_peft_format:
        return
    if not params.adapters:
        yield "adapters", "name the adapter to write as PEFT has it"
    for name in ("merge_lora", "quant_method", "to_gguf", "to_ollama"):
        if getattr(params, name):
            yield name, "it makes something else of the adapter than to_peft_format does"
