"""A disk that is full, or a folder that cannot be written, in words for whoever asked for the job."""

import contextlib
import errno
import os
from pathlib import Path

from engines.errors import StorageFull

PROBE_BYTES = 1 << 16


class StorageUnusable(StorageFull):
    """The folder of jobs cannot be written, for a reason that only whoever runs the server can mend."""

    code = "storage_unusable"


def to_storage_error(error: OSError) -> StorageFull:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("There is no room left on the server's disk for this job.")
    reason = error.strerror or type(error).__name__
    return StorageUnusable(f"The server cannot write this job's folder: {reason}.")


def find_storage_error(folder: Path) -> StorageFull | None:
    """Why nothing can be written to `folder`; None where something can."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        probe.write_bytes(b"\0" * PROBE_BYTES)
    except OSError as error:
        return to_storage_error(error)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None
