"""Large weights are worked on some rows at a time: as float32 in between, all of them would take twice or eight times
the memory of what comes of them."""

from collections.abc import Iterator

VALUES = 1 << 20
"""Of the rows that are worked on together."""


def spans(rows: int, width: int) -> Iterator[slice]:
    """Rows of `width` values, one slice of them after another; each has one row at least."""
    step = max(1, VALUES // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
