"""Where tuneserve keeps what can be made again: the converted demo model, compiled kernels."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$TUNESERVE_CACHE, or else the user's cache folder. It need not exist yet."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("TUNESERVE_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("tuneserve")
