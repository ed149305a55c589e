"""What it takes for a file or a folder to outlive a loss of power."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Have the disk hold what a file or a folder says now, so that no rename can come before what it renames."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
