"""Markers in a text that comes in pieces."""

from collections.abc import Iterable


def beginning_of(marker: str, text: str, layout: str) -> str:
    """Return the end of `text` that may turn out to be characters of `layout` and then the marker."""
    longest = next((n for n in range(len(marker) - 1, 0, -1) if text.endswith(marker[:n])), 0)
    return text[len(text[: len(text) - longest].rstrip(layout)) :]


def beginning_of_any(markers: Iterable[str], text: str, layout: str) -> str:
    return max((beginning_of(marker, text, layout) for marker in markers), key=len, default="")


def first_of(markers: Iterable[str], text: str) -> tuple[int, str]:
    """Where the first of the markers is in the text, and which; -1 and "" where none is."""
    found = [(position, marker) for marker in markers if (position := text.find(marker)) >= 0]
    return min(found, key=lambda place: (place[0], -len(place[1])), default=(-1, ""))


def leading(markers: Iterable[str], text: str) -> str:
    """The marker with which the text begins; "" where it begins with none."""
    return next((marker for marker in markers if text.startswith(marker)), "")


def may_lead(markers: Iterable[str], text: str) -> bool:
    """Whether the text may be the beginning of a marker."""
    return any(marker.startswith(text) for marker in markers)
