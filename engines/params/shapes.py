"""What kinds of values a parameter takes, and how its type and default are written for people."""

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

WORDS: dict[Any, str] = {int: "N", float: "NUMBER", str: "TEXT", dict: "JSON", tuple: "VALUE", bool: "true|false"}


@dataclass(frozen=True, slots=True)
class Shape:
    kinds: frozenset[Any]
    """The types it takes, bare: `tuple` for any list, `dict` for any JSON object."""
    choices: tuple[str, ...] = ()
    """The words that it names."""

    def __str__(self) -> str:
        return "|".join([*self.choices, *(word for kind, word in WORDS.items() if kind in self.kinds)])


def shape_of(annotation: Any) -> Shape:
    """The shape of a field's annotation; None says that it need not be given, and is no kind of value."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return Shape(frozenset(), args)
    if origin is Annotated:
        return shape_of(args[0])
    if origin in (Union, UnionType):
        parts = [shape_of(arg) for arg in args if arg is not NoneType]
        return Shape(
            frozenset().union(*(part.kinds for part in parts)),
            tuple(choice for part in parts for choice in part.choices),
        )
    return Shape(frozenset({origin or annotation}))


def default_of(field: FieldInfo) -> str | None:
    """A field's default as one would give it; None where nothing is the default: the description tells what then."""
    if field.is_required():
        return None
    default = field.get_default()
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or None
    if isinstance(default, bool):
        return str(default).lower()
    return None if default is None else str(default)
