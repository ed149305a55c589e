"""Several samples in one row of at most so many tokens, so that little of a batch is padding."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

WINDOW = 1000
"""Samples of a stream that are packed together."""


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Put each sample, the longest first, into the fullest row that has room for it (best fit decreasing).

    Returns the positions of each row's samples. No length may be above `room`.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (room left, row), in rising order
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[position]
        fits = bisect_left(spaces, (length, -1))
        if fits == len(spaces):
            left, row = room, len(rows)
            rows.append([])
        else:
            left, row = spaces.pop(fits)
        rows[row].append(position)
        insort(spaces, (left - length, row))
    return rows


def packed(samples: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """One row of several samples, with the length of each."""
    row: dict[str, list[Any]] = {"seq_lengths": []}
    for sample in samples:
        for name, values in sample.items():
            row.setdefault(name, []).extend(values)
        row["seq_lengths"].append(len(sample["input_ids"]))
    return row


def samples_of(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The samples of a row, packed or not."""
    if "seq_lengths" not in row:
        yield row
        return
    start = 0
    for length in row["seq_lengths"]:
        yield {name: values[start : start + length] for name, values in row.items() if name != "seq_lengths"}
        start += length


def pack_stream(samples: Iterable[Mapping[str, Any]], room: int) -> Iterator[dict[str, list[Any]]]:
    """Pack so many samples at a time as fit a window."""
    window: list[Mapping[str, Any]] = []
    for sample in samples:
        window.append(sample)
        if len(window) == WINDOW:
            yield from _pack(window, room)
            window = []
    yield from _pack(window, room)


def _pack(samples: Sequence[Mapping[str, Any]], room: int) -> Iterator[dict[str, list[Any]]]:
    for row in best_fit([len(sample["input_ids"]) for sample in samples], room):
        yield packed(samples[position] for position in row)
