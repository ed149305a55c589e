"""Rows of the table: a parameter, two values of it, what is given besides, and what then can be seen to differ."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from engines.params.base import Params

UNGIVEN: Any = object()
"""In place of a value: the parameter is left out."""

Given = Mapping[str, Any]
Seen = TypeVar("Seen")
Observer = Callable[[Seen], Any]


@dataclass(frozen=True)
class Row:
    """`one` and `two` are all that is given, the parameter's two values among it."""

    one: Given
    two: Given
    seen: Callable[[Any], Any]
    """What is looked at: of whatever the parameters are given to."""


@dataclass(frozen=True)
class Two:
    """Two values of a parameter, and where their difference is seen."""

    one: Any
    two: Any
    seen: Callable[[Any], Any]
    base: Given = field(default_factory=dict)
    """What is given besides, with either."""


Table = Mapping[str, Row]


def apart(base: Given, **parameters: Two) -> dict[str, Row]:
    """Each parameter tried by itself."""
    return {name: together({**base, **two.base}, **{name: two})[name] for name, two in parameters.items()}


def together(base: Given, **parameters: Two) -> dict[str, Row]:
    """Parameters whose effects are seen in different places, so that one trial shows all."""
    one, two = dict(base), dict(base)
    for name, pair in parameters.items():
        one, two = _with(one, name, pair.one), _with(two, name, pair.two)
    return {name: Row(one, two, pair.seen) for name, pair in parameters.items()}


def _with(base: Given, name: str, value: Any) -> dict[str, Any]:
    return {key: given for key, given in {**base, name: value}.items() if given is not UNGIVEN}


def another_value(params: type[Params], name: str, needed: Any) -> Any:
    """A value that the parameter's type takes and that is neither its default nor the one needed. Raises LookupError
    where there is none."""
    default = params.model_fields[name].get_default(call_default_factory=True)
    for value in _values(params.model_fields[name].annotation):
        if value not in (default, needed) and _takes(params, name, value):
            return value
    raise LookupError(name)


def _values(annotation: Any) -> list[Any]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(args[0])
    if origin in (Union, UnionType):
        return [value for arg in args if arg is not NoneType for value in _values(arg)]
    if origin is Literal:
        return list(args)
    if origin is tuple:
        return [[value] for value in _values(args[0])]
    kinds: dict[Any, list[Any]] = {
        bool: [True, False],
        int: [3, 1],
        float: [0.25, 0.75, 3.0],
        str: ["x", "pissa", "1KB"],
        dict: [{"x": 1}],
    }
    return list(kinds.get(origin or annotation, ()))


def _takes(params: type[Params], name: str, value: Any) -> bool:
    try:
        params.model_validate({name: value})
    except ValidationError as error:
        return all(problem["loc"][0] != name for problem in error.errors())
    return True
