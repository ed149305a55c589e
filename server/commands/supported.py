"""Which parameters `deploy` supports. One that nothing reads is refused, never ignored."""

from pathlib import Path

from engines.adapters.source import name_adapters
from engines.errors import InvalidAdapter, InvalidRequest
from engines.params.about import DEPLOY, EVERY_ENGINE, facts
from engines.params.deploy import DeployParams
from engines.params.template import template_conflicts
from engines.refusals import said_twice, uncached, unquantised, unread, unspeculative


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
    twice = [f"--{one} and --{other} mean the same here: give one" for one, other in said_twice(params)]
    templates = [f"--{name}: {reason}" for name, reason in template_conflicts(params, mark="--")]
    return (
        missing
        + vain
        + twice
        + templates
        + [f"--{name}: {reason}" for name, reason in unquantised(params, mark="--")]
        + [f"--{name}: {reason}" for name, reason in unspeculative(params)]
        + [f"--{name}: {reason}" for name, reason in uncached(params)]
        + _adapter_refusals(params)
        + _database_refusals(params)
    )


def _refusal(params: DeployParams, name: str) -> str | None:
    reason = unread(params, name, DEPLOY)
    return None if reason is None else f"--{name}: {reason}"


def _database_refusals(params: DeployParams) -> list[str]:
    if params.database_url is None:
        return []
    from server.store.address import read_address

    try:
        read_address(params.database_url)
    except InvalidRequest as error:
        return [f"--database_url: {error.message}"]
    return []


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
