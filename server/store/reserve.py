"""The part of the disk that is reserved for the database: everything else stops before the disk is full."""

import os
from dataclasses import dataclass
from pathlib import Path

from engines.errors import StorageFull


@dataclass(frozen=True, slots=True)
class DiskReserve:
    folder: Path
    """The folder of the server's state. It need not exist yet."""
    size: int
    """Bytes of its disk that only the database may use."""

    def check(self, more: int = 0) -> None:
        """Raises StorageFull where less than the reserve would be left after `more` bytes."""
        there = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        disk = os.statvfs(there)
        if disk.f_bavail * disk.f_frsize - more < self.size:
            raise StorageFull("There is no room left on the server's disk but what is kept for its database.")
