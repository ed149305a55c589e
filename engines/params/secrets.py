"""How the secrets of a command come to its worker: as environment variables, by the names under which libraries read
them.

A file would have to be found and removed after every way in which a worker can end, and torchrun starts several that
would each read it. No other user of the machine sees a process's environment, and it goes with the process. The
workers of a server get none: what they do, clients say.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from engines.params.about import facts
from engines.params.base import Params

P = TypeVar("P", bound=Params)


def secrets_of(params: Params) -> dict[str, str]:
    """Environment variables for a worker process: those of the secrets that `params` gives."""
    found = {said.variable: getattr(params, name) for name, said in facts(type(params)) if said.variable is not None}
    return {variable: value for variable, value in found.items() if value is not None}


def with_secrets(params: P, environment: Mapping[str, str]) -> P:
    """`params`, with the secrets that `environment` holds, in a worker process."""
    given: dict[str, Any] = {
        name: environment[said.variable]
        for name, said in facts(type(params))
        if said.variable is not None and environment.get(said.variable)
    }
    return params.model_copy(update=given) if given else params
