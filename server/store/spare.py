"""Room on the disk for deleting: SQLite writes a few pages before anything is freed, and on a full disk has none."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

SIZE = 1 << 20
"""Bytes. To delete a row takes some ten pages of 4 KiB, and a job with all its events a few hundred."""


@dataclass(frozen=True, slots=True)
class Spare:
    """A file that holds the room as long as nobody needs it. A server that is killed leaves it, or none."""

    file: Path

    def give_up_if_full(self) -> None:
        """Before a change that makes room: have the file's room, where the disk has no other."""
        if self._left() < SIZE and self.file.exists():
            self.file.unlink(missing_ok=True)
            log.warning("The disk of %s is full: what is kept there for deleting is taken.", self.file.parent)

    def restore(self) -> None:
        """Hold the room again, where there is enough of it."""
        if self.file.exists() or self._left() < 2 * SIZE:
            return
        try:
            with self.file.open("xb") as file:
                _allocate(file.fileno())
        except OSError:  # others were faster, or it cannot be had here
            self.file.unlink(missing_ok=True)

    def _left(self) -> int:
        disk = os.statvfs(self.file.parent)
        return disk.f_bavail * disk.f_frsize


def _allocate(descriptor: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, SIZE)
    else:  # macOS
        os.write(descriptor, bytes(SIZE))
