"""Why a parameter is refused, in the same words wherever it is found out."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

from pydantic import ValidationError

from engines.errors import TuneserveError
from engines.params.about import NOT_SUPPORTED
from engines.params.base import Params

Refusal = tuple[str, str]
"""The parameter, and the reason."""


def not_supported(value: object, choices: Collection[str]) -> str:
    """The reason to refuse a choice that the interface has and this version has not."""
    return f"{value} is {NOT_SUPPORTED}; choose {' or '.join(choices)}"


def read_by_others_only(
    params: Params, selector: str, chosen: str, readers: Mapping[str, frozenset[str]]
) -> list[Refusal]:
    """Parameters that were given although `chosen` does not read them, but another value of the parameter `selector`
    would. `readers`: value -> the parameters that are read with it."""
    unread = sorted(given(params, params.model_fields_set - readers[chosen]))
    found = [(name, [value for value, names in readers.items() if name in names]) for name in unread]
    return [(name, f"only {selector} {' or '.join(values)} reads it") for name, values in found if values]


def given(params: Params, names: Iterable[str]) -> list[str]:
    """Those of `names` that were given a value other than their default."""
    return [name for name in names if name in params.model_fields_set and not _at_default(params, name)]


def _at_default(params: Params, name: str) -> bool:
    default = type(params).model_fields[name].get_default(call_default_factory=True)
    return bool(getattr(params, name) == default)


def first_problem(error: ValidationError, *, below: int = 0) -> str:
    """The first that is wrong with a value in a parameter, and where in it. `below`: steps on the way there that are
    not the value's own."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(step) for step in first["loc"][below:])
    return f"{where}: {first['msg']}" if where else first["msg"]


@contextmanager
def said_of(param: str) -> Iterator[None]:
    """Have errors name `param`, where it is read as others are: a reward model is loaded as the model is."""
    try:
        yield
    except TuneserveError as error:
        error.param = param
        raise
