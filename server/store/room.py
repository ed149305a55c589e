"""Room on the disk that is the database's: what else is kept there stops before the disk is full."""

import os
from dataclasses import dataclass
from pathlib import Path

from engines.errors import StorageFull


@dataclass(frozen=True, slots=True)
class Room:
    folder: Path
    """The state's. It need not exist yet."""
    reserve: int
    """Bytes of its disk that nothing but the database takes."""

    def check(self, more: int = 0) -> None:
        """Raises StorageFull where less than the reserve would be left beside `more` bytes."""
        there = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        disk = os.statvfs(there)
        if disk.f_bavail * disk.f_frsize - more < self.reserve:
            raise StorageFull("There is no room left on the server's disk but what is kept for its database.")
