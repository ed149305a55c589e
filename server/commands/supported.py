"""Which parameters `deploy` supports. One that nothing reads is refused, never ignored."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from engines.adapters.source import name_adapters
from engines.checkpoint.quantization import quantization_conflicts
from engines.errors import InvalidAdapter, InvalidRequest
from engines.params.about import DEPLOY, EVERY_ENGINE, NOT_SUPPORTED, about, facts, unsupported_choice
from engines.params.deploy import DeployParams
from engines.params.template import template_conflicts


def whatever_the_engine() -> frozenset[str]:
    """What the server itself reads."""
    return frozenset(name for name, said in facts(DeployParams) if said.read_by(DEPLOY))


def by_engine(engine: str) -> frozenset[str]:
    """What the engine's configuration is made of."""
    return frozenset(name for name, said in facts(DeployParams) if engine in said.engines)


def unsupported() -> frozenset[str]:
    """What is refused in any value but its default."""
    read = whatever_the_engine().union(*map(by_engine, EVERY_ENGINE))
    return frozenset(DeployParams.model_fields) - read


def refusals(params: DeployParams) -> list[str]:
    """One line for each parameter that was given in vain, and for a model that was not given."""
    given = params.model_fields_set
    missing = [] if params.model else ["--model: name the model to serve, a folder or an id on the hub"]
    vain = [reason for name in sorted(given) if (reason := _refusal(params, name))]
    twice = [f"--{one} and --{other} mean the same here: give one" for one, other in _said_twice(params)]
    templates = [f"--{name}: {reason}" for name, reason in template_conflicts(params, mark="--")]
    return (
        missing
        + vain
        + twice
        + templates
        + _quantization_refusals(params)
        + _adapter_refusals(params)
        + _database_refusals(params)
    )


def _refusal(params: DeployParams, name: str) -> str | None:
    field, value, engine = DeployParams.model_fields[name], getattr(params, name), params.infer_backend
    said = about(field)
    if said.read_by(DEPLOY) or engine in said.engines:
        reason = unsupported_choice(field, value)
        return None if reason is None else f"--{name}: {reason}"
    if value == field.get_default():
        return None
    if engine == "lmdeploy" and said.not_in_lmdeploy:
        return f"--{name}: {said.not_in_lmdeploy}"
    if said.engines:
        return f"--{name}: the engine {engine} does not support it; it is for {' and '.join(said.engines)}"
    return f"--{name}: {said.not_in_deploy or NOT_SUPPORTED}"


def _said_twice(params: DeployParams) -> Iterator[tuple[str, str]]:
    """Parameters that mean the same, of which more than one is given."""
    names: dict[str, list[str]] = {}
    for name, said in facts(DeployParams):
        if said.same_as and name in params.model_fields_set:
            names.setdefault(said.same_as, []).append(name)
    for name, others in names.items():
        given = [*others, name] if name in params.model_fields_set else others
        yield from combinations(given, 2)


def _database_refusals(params: DeployParams) -> list[str]:
    if params.database_url is None:
        return []
    from server.store.address import read_address

    try:
        read_address(params.database_url)
    except InvalidRequest as error:
        return [f"--database_url: {error.message}"]
    return []


def _quantization_refusals(params: DeployParams) -> list[str]:
    if params.infer_backend == "lmdeploy":  # which reads none of these parameters
        return []
    conflicts = quantization_conflicts(params, mark="--")
    if params.infer_backend == "vllm" and params.quant_method in ("bnb", "hqq"):
        only = f"vLLM 0.32 quantises weights by torchao only while it loads them: pt does by {params.quant_method}"
        conflicts = [("quant_method", only)]
    return [f"--{name}: {reason}" for name, reason in conflicts]


def _adapter_refusals(params: DeployParams) -> list[str]:
    """Folders that are not there, and adapters that cannot be told apart."""
    folders = [("adapter_roots", root) for root in params.adapter_roots]
    folders += [("job_roots", root) for root in params.job_roots]
    folders += [] if params.adapter_dir is None else [("adapter_dir", params.adapter_dir)]
    lines = [f"--{name}: {path!r} is not a folder" for name, path in folders if not Path(path).expanduser().is_dir()]
    try:
        name_adapters(params.adapters)
    except InvalidAdapter as error:
        lines.append(f"--adapters: {error.message}")
    return lines
