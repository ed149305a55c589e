"""Build the C kernel for this machine, once, and load it. Without a compiler there is none, and torch does the work."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from engines.cache import cache_folder

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("paged_attention.c")
# -march=native: the library is built where it runs. -ffast-math lets sums be vectorised; the kernel has no infinities.
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC", "-std=gnu11")


def load() -> ctypes.CDLL | None:
    """Return the kernel library, building it on first use; None where that is not possible, with the reason logged.

    Import torch first: its OpenMP runtime then serves the kernel too, so both share one pool of threads.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        log.warning("no C compiler found: attention runs on plain torch operations, which is slower")
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the attention kernel could not be built (%s): attention runs on plain torch operations", error)
        return None


def _built(compiler: str) -> Path:
    key = hashlib.sha256(SOURCE.read_bytes() + repr((FLAGS, compiler, _cpu())).encode()).hexdigest()[:16]
    library = cache_folder() / "kernels" / f"paged_attention-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        # Built beside its place and renamed, so that no process ever loads half a library.
        descriptor, scratch = tempfile.mkstemp(dir=library.parent, suffix=".so")
        os.close(descriptor)
        try:
            subprocess.run(
                [compiler, *FLAGS, str(SOURCE), "-o", scratch, "-lm"], check=True, capture_output=True, timeout=120
            )
            os.replace(scratch, library)
        finally:
            Path(scratch).unlink(missing_ok=True)
    return library


def _cpu() -> str:
    """What `-march=native` depends on: a cache folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
