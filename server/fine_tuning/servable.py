"""What could be trained, but would not be served: a fine-tuning job promises a model that answers."""

import regex

from engines.capabilities import AdapterSupport
from engines.errors import InvalidRequest, UnsupportedParameter
from training.params.sft import SftParams

MATCHING_SECONDS = 1.0
MERGE = "train it as a job of /v1/jobs, merge it, and serve the result"


def check_servable(params: SftParams, support: AdapterSupport | None) -> None:
    """Raises UnsupportedParameter, with `param` "model" or `parameters.NAME`, where the result could not be served."""
    if support is None:
        raise UnsupportedParameter("The engine serves the base model only, without adapters.", param="model")
    if params.train_type != "lora":
        raise _refused("train_type", f"{params.train_type!r} makes no LoRA adapter, and no other is served: {MERGE}")
    if params.use_dora:
        raise _refused("use_dora", f"DoRA scales the base model's weights themselves: {MERGE}")
    if params.lora_bias != "none":
        raise _refused("lora_bias", "adapters that change biases are not served")
    rank = params.lora_rank * (2 if params.init_weights.startswith("pissa") else 1)  # what its plain form has
    if rank > support.max_rank:
        raise _refused("lora_rank", f"{rank} is above the {support.max_rank} served (max_lora_rank)")
    _check_modules(params, support)


def _check_modules(params: SftParams, support: AdapterSupport) -> None:
    known = [*support.linears, *support.embeddings]
    if params.target_regex is not None:
        if not _matches_any(params.target_regex, known):
            raise _refused("target_regex", "no layer that can be adapted matches it")
    else:
        if not params.target_modules:
            raise _refused("target_modules", "it names no layer")
        for module in params.target_modules:
            if module != "all-linear" and not _ends_any(module, known):
                raise _refused("target_modules", f"the model has no layer {module[:100]!r} that can be adapted")
    for module in params.modules_to_save:
        if not _ends_any(module, support.replaceable):
            served = ", ".join(sorted(support.replaceable)) or "none"
            raise _refused(
                "modules_to_save", f"{module[:100]!r} cannot be replaced in the served model; these can: {served}"
            )


def _ends_any(module: str, paths: "list[str] | frozenset[str]") -> bool:
    return any(path == module or path.endswith(f".{module}") for path in paths)


def _matches_any(pattern: str, paths: list[str]) -> bool:
    """As PEFT does: over the whole path."""
    try:
        compiled = regex.compile(pattern)
        return any(compiled.fullmatch(path, timeout=MATCHING_SECONDS / len(paths)) for path in paths)
    except regex.error as error:
        raise InvalidRequest(
            f"parameters.target_regex is no regular expression: {error}", param="parameters.target_regex"
        ) from None
    except TimeoutError:
        raise _refused("target_regex", "it takes too long to match") from None


def _refused(name: str, reason: str) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"parameters.{name} would make a model that cannot be served: {reason}.", param=f"parameters.{name}"
    )
