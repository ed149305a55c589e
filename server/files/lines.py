"""The lines of a file that clients have uploaded, and where each begins, so that one can be read again by itself."""

from collections.abc import Iterator
from pathlib import Path

BOM = b"\xef\xbb\xbf"
"""What some editors and shells write before UTF-8; it is no part of the first line."""


def lines_of(path: Path, max_line: int) -> Iterator[tuple[int, bytes]]:
    """Each line with its offset in bytes. One of more than `max_line` bytes is cut behind the limit, and the last."""
    with path.open("rb") as file:
        offset = len(BOM) if file.read(len(BOM)) == BOM else 0
        file.seek(offset)
        while line := file.readline(max_line + 1):
            yield offset, line
            offset += len(line)
            if len(line) > max_line:
                return
