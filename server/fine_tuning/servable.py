"""What could be trained, but would not be served: a fine-tuning job promises a model that answers."""

import regex

from engines.capabilities import AdapterSupport
from engines.errors import InvalidRequest, UnsupportedParameter
from training.params.sft import SftParams
from training.tuners import tuner_of

MATCHING_SECONDS = 1.0
JOB = "train it as a job of /v1/jobs"
WAYS_OUT = {
    ("adapter", True): f"{JOB}, merge it, and serve the result",
    ("adapter", False): f"{JOB}, and load it in Python",
    ("model", False): f"{JOB}, and serve the result",
}
"""What a tuner makes, and whether that can be merged -> what can be done instead."""


def check_servable(params: SftParams, support: AdapterSupport | None) -> None:
    """Raises UnsupportedParameter, with `param` "model" or `parameters.NAME`, where the result could not be served."""
    if support is None:
        raise UnsupportedParameter("The engine serves the base model only, without adapters.", param="model")
    tuner = tuner_of(params)
    for name, reason in tuner.unserved(params, support):
        raise _refused(name, f"{reason}: {WAYS_OUT[tuner.makes, tuner.mergeable]}")
    _check_modules(params, support)


def _check_modules(params: SftParams, support: AdapterSupport) -> None:
    known = [*support.linears, *support.embeddings]
    experts = {_leaf(path) for path in support.experts}
    if params.target_regex is not None:
        if not _matches_any(params.target_regex, known):
            raise _refused("target_regex", "no layer that can be adapted matches it")
        if _matches_any(params.target_regex, [*support.experts, *(path for path in known if _leaf(path) in experts)]):
            raise _refused("target_regex", f"it adapts experts, too, {_no_experts(support)}")
    else:
        if not params.target_modules:
            raise _refused("target_modules", "it names no layer")
        for module in params.target_modules:
            if experts and (module == "all-linear" or _leaf(module) in experts):
                raise _refused("target_modules", f"{module[:100]} adapts experts, {_no_experts(support)}")
            if module != "all-linear" and not _ends_any(module, known):
                raise _refused("target_modules", f"the model has no layer {module[:100]!r} that can be adapted")
    for module in params.modules_to_save:
        if not _ends_any(module, support.replaceable):
            served = ", ".join(sorted(support.replaceable)) or "none"
            raise _refused(
                "modules_to_save", f"{module[:100]!r} cannot be replaced in the served model; these can: {served}"
            )


def _no_experts(support: AdapterSupport) -> str:
    names = {_leaf(path) for path in support.linears} - {_leaf(path) for path in support.experts}
    return f"and adapters of experts are not served: name layers, of {', '.join(sorted(names)[:8])}"


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _ends_any(module: str, paths: "list[str] | frozenset[str]") -> bool:
    return any(path == module or path.endswith(f".{module}") for path in paths)


def _matches_any(pattern: str, paths: list[str]) -> bool:
    """Whether a pattern of PEFT fits a module's whole path."""
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
