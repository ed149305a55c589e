"""A folder of this process alone. Where the process is killed, a later one clears it away."""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "tuneserve-vllm-"
YOUNG_SECONDS = 60.0
"""Seconds of age below which a folder is not cleared away: its owner may be about to lock it."""


class PrivateFolder:
    """Kept until `remove`."""

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            _remove_abandoned(left)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # until this process ends, in whatever way

    def remove(self) -> None:
        """May be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _remove_abandoned(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return  # somebody else's, or gone
    try:
        if time.time() - os.fstat(lock).st_mtime > YOUNG_SECONDS:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # its process lives
    finally:
        os.close(lock)
