"""A folder whose subfolders are adapters, looked at when a request names one: nothing is scanned."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from engines.adapters.names import SEGMENT
from engines.adapters.spec import CONFIG, WEIGHTS
from engines.text.templates import TEMPLATES

Signature = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Found:
    folder: Path
    signature: Signature
    """Differs once the files have changed."""


class WatchedFolder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, name: str) -> Found | None:
        """The subfolder `name` where it holds an adapter.

        A link that leads out of the folder is none of its subfolders.
        """
        if not re.fullmatch(SEGMENT, name):
            return None
        try:
            folder = Path(os.path.realpath(self._folder / name, strict=True))  # `resolve` raises otherwise at a loop
            if not folder.is_relative_to(os.path.realpath(self._folder)) or not (folder / CONFIG).is_file():
                return None
            return Found(folder, (folder, *(_stamp(folder / name) for name in (CONFIG, WEIGHTS, *TEMPLATES))))
        except OSError:  # it has gone, or is not for us to read
            return None


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return ()
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)
