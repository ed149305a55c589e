"""Markers in a text that comes in pieces."""


def beginning_of(marker: str, text: str, layout: str) -> str:
    """Return the end of `text` that may turn out to be characters of `layout` and then the marker."""
    longest = next((n for n in range(len(marker) - 1, 0, -1) if text.endswith(marker[:n])), 0)
    return text[len(text[: len(text) - longest].rstrip(layout)) :]
