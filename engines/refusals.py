"""What is refused of the parameters that an engine is run with, whoever runs it: a server, or an inference."""

from collections.abc import Iterator
from itertools import combinations

from engines.checkpoint.quantization import quantization_conflicts
from engines.params.about import NOT_SUPPORTED, about, facts, unsupported_choice
from engines.params.engine import unfit_cache_for_pt
from engines.params.infer import InferParams
from engines.params.speculation import unfit_for_pt


def unread(params: InferParams, name: str, readers: tuple[str, ...]) -> str | None:
    """Why the value of a parameter that was given is refused; None where one of `readers` or the engine reads it."""
    field, value, engine = type(params).model_fields[name], getattr(params, name), params.infer_backend
    said = about(field)
    if said.read_by(readers) or engine in said.engines:
        return unsupported_choice(field, value)
    if value == field.get_default():
        return None
    if engine == "lmdeploy" and said.not_in_lmdeploy:
        return said.not_in_lmdeploy
    if said.engines:
        return f"the engine {engine} does not support it; it is for {' and '.join(said.engines)}"
    return said.not_in_deploy or NOT_SUPPORTED


def said_twice(params: InferParams) -> Iterator[tuple[str, str]]:
    """Parameters that mean the same, of which more than one is given."""
    names: dict[str, list[str]] = {}
    for name, said in facts(type(params)):
        if said.same_as and name in params.model_fields_set:
            names.setdefault(said.same_as, []).append(name)
    for name, others in names.items():
        given = [*others, name] if name in params.model_fields_set else others
        yield from combinations(given, 2)


def unspeculative(params: InferParams) -> list[tuple[str, str]]:
    """The parameter of speculative decoding where it asks for what the engine does not do, and why."""
    config = params.speculative_config
    reason = None if config is None or params.infer_backend != "pt" else unfit_for_pt(config)
    return [] if reason is None else [("speculative_config", reason)]


def uncached(params: InferParams) -> list[tuple[str, str]]:
    """The type of the KV cache where the engine has no such one, and why."""
    reason = None if params.infer_backend != "pt" else unfit_cache_for_pt(params.kv_cache_dtype)
    return [] if reason is None else [("kv_cache_dtype", reason)]


def unquantised(params: InferParams, *, mark: str = "") -> list[tuple[str, str]]:
    """Parameters of quantising that do not go together, or not with the engine, and why. `mark` stands before the
    names of parameters in the reasons."""
    if params.infer_backend == "lmdeploy":  # which reads none of these parameters
        return []
    if params.infer_backend == "vllm" and params.quant_method in ("bnb", "hqq"):
        only = f"vLLM 0.32 quantises weights by torchao only while it loads them: pt does by {params.quant_method}"
        return [("quant_method", only)]
    return quantization_conflicts(params, mark=mark)
