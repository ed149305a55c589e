"""Writes that outlive a loss of power."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk, so that no rename can come before what it renames."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
