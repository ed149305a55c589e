"""What a worker has written to its output, in pages of whole lines, without the folders of the machine."""

from pathlib import Path
from typing import Any

from training.discreet import without_folders
from training.folder import LOG


def read_log(folder: Path, *, offset: int, limit: int) -> dict[str, Any]:
    """At most `limit` bytes from byte `offset` on; `next_offset` is where the next page begins."""
    try:
        with (folder / LOG).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(min(offset, size))
            data = file.read(limit)
    except FileNotFoundError:
        size, data = 0, b""
    start = min(offset, size)
    if start + len(data) < size and b"\n" in data:
        data = data[: data.rindex(b"\n") + 1]
    end = start + len(data)
    text = without_folders(data.decode(errors="replace"))
    return {"text": text, "offset": start, "next_offset": end, "has_more": end < size}
