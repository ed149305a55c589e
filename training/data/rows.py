"""The rows of a data set that can be used, and what became of the others."""

from collections.abc import Callable, Iterator, Mapping
from ctypes import c_char, c_longlong
from dataclasses import dataclass, field
from multiprocessing import Array, Value
from typing import Any

from engines.params.common import BaseParams
from training.data.columns import read
from training.data.problems import BadData, BadRow
from training.data.samples import UNKNOWN_TO_SOME, Learns, fields_for_template
from training.data.shapes import shape_of
from training.data.sources import Found, Source

TEXT = 2000
"""Most bytes of a shared text."""


@dataclass(frozen=True, slots=True)
class Told:
    """What is to be told of the rows of a data set."""

    dropped: int = 0
    """Number of rows that were left out."""
    first: str = ""
    """What was wrong with the first of them."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Fields of messages that not every chat template reads -> the first place that has one."""

    def __add__(self, other: "Told") -> "Told":
        return Told(self.dropped + other.dropped, self.first or other.first, {**other.fields, **self.fields})

    def notes(self, source: str, reads: Callable[[str], bool]) -> Iterator[str]:
        """`reads` says whether the chat template reads a field of messages."""
        if self.dropped:
            yield f"{self.dropped} rows of {source} were left out, the first because: {self.first}"
        for name, place in self.fields.items():
            if not reads(name):
                yield (
                    f"messages of {source} have {name!r}, the first in {place}: the chat template has no place for it, "
                    "so that it is not learned"
                )


class Account:
    """Collects what is to be told, in memory that processes share: loaders of a stream write it, training reads it."""

    def __init__(self) -> None:
        self._dropped = Value(c_longlong)
        self._first = Array(c_char, TEXT)
        self._fields = {name: Array(c_char, TEXT) for name in UNKNOWN_TO_SOME}

    def drop(self, problem: str) -> None:
        with self._dropped.get_lock():
            self._dropped.value += 1
            self._first.value = self._first.value or _cut(problem)

    def saw(self, name: str, place: str) -> None:
        """Note that a message at `place` has the field `name`."""
        self._fields[name].value = self._fields[name].value or _cut(place)

    @property
    def told(self) -> Told:
        fields = {name: text.value.decode() for name, text in self._fields.items() if text.value}
        return Told(self._dropped.value, self._first.value.decode(), fields)


def _cut(text: str) -> bytes:
    return text.encode()[: TEXT - 1].decode(errors="ignore").encode()


def usable(source: Source, params: BaseParams, learns: Learns, account: Account) -> Iterator[tuple[str, Any]]:
    """The rows as they are in the data, and where each of them is. Raises BadData: at the first that cannot be used,
    where `strict` is set; else at the end, where there was none that can."""
    shape: str | None = None
    count = 0
    for found in source.rows(params):
        try:
            shape = _checked(found, learns, shape if params.strict else None, account)
        except BadRow as error:
            problem = f"{found.place}: {error}"
            problem = problem[:1].upper() + problem[1:]
            if params.strict:
                raise BadData(problem, param=source.param) from error
            account.drop(problem)
            continue
        count += 1
        yield found.place, found.row
    if not count:
        first = account.told.first
        why = f"no row of {source.name} can be used. {first}" if first else f"{source.name} holds no rows"
        raise BadData(why[:1].upper() + why[1:], param=source.param)


def _checked(found: Found, learns: Learns, expected: str | None, account: Account) -> str:
    """The row's shape. Raises BadRow."""
    if found.problem is not None:
        raise BadRow("", found.problem)
    sample = read(found.row, learns)
    shape = shape_of(found.row, learns)
    if expected is not None and shape != expected:
        raise BadRow("", f"this row is of the shape {shape!r}, those before it are of the shape {expected!r}")
    for name in fields_for_template(sample):
        account.saw(name, found.place)
    return shape
