"""The rows of a data set that can be used, and what became of the others."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from training.data.columns import Learns, read, shape_of
from training.data.problems import BadData, BadRow
from training.data.sources import Found, Source
from training.params.sft import SftParams


@dataclass(slots=True)
class Dropped:
    """Counts the rows that were left out."""

    count: int = 0
    first: str | None = None
    """What was wrong with the first."""

    def add(self, problem: str) -> None:
        self.count += 1
        self.first = self.first or problem


def usable(source: Source, params: SftParams, learns: Learns, dropped: Dropped) -> Iterator[tuple[str, Any]]:
    """The rows as they are in the data, and where each of them is. Raises BadData: at the first that cannot be used,
    where `strict` is set; else at the end, where there was none that can."""
    shape: str | None = None
    count = 0
    for found in source.rows(params):
        try:
            shape = _checked(found, learns, shape if params.strict else None)
        except BadRow as error:
            problem = f"{found.place}: {error}"
            problem = problem[:1].upper() + problem[1:]
            if params.strict:
                raise BadData(problem, param=source.param) from error
            dropped.add(problem)
            continue
        count += 1
        yield found.place, found.row
    if not count:
        why = (
            f"no row of {source.name} can be used. {dropped.first}" if dropped.first else f"{source.name} holds no rows"
        )
        raise BadData(why[:1].upper() + why[1:], param=source.param)


def _checked(found: Found, learns: Learns, expected: str | None) -> str:
    """The row's shape. Raises BadRow."""
    if found.problem is not None:
        raise BadRow("", found.problem)
    read(found.row, learns)
    shape = shape_of(found.row)
    if expected is not None and shape != expected:
        raise BadRow("", f"this row is of the shape {shape!r}, those before it are of the shape {expected!r}")
    return shape
