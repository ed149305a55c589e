"""Build the C kernels for this machine, once, and load them. Without a compiler there are none: torch does the work."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engines.setup.cache import cache_folder

log = logging.getLogger(__name__)

SOURCES = sorted(Path(__file__).parent.glob("*.c"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
# The library is built where it runs. On ARM, clang knows -mcpu=native alone, and GCC both.
NATIVE = "-march=native" if platform.machine() in ("x86_64", "AMD64", "i686") else "-mcpu=native"
# No -ffast-math, which changes how the whole process rounds small numbers: sums are vectorised where the code says so,
# and products and sums fused where it says so.
EXACT = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
FLAGS = ("-O3", NATIVE, *EXACT, "-fopenmp", "-fPIC", "-std=gnu11")


def load(*flags: str) -> ctypes.CDLL | None:
    """Return the library of kernels, building it on first use; None where that is not possible, with the reason logged.

    `flags` are the compiler's, beside those for this machine: `-mno-avx512f` leaves out what a lesser one has not.
    Import torch first: its OpenMP runtime then serves the kernels too, so both share one pool of threads.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        log.warning("no C compiler found: plain torch operations are used, which are slower")
        return None
    try:
        return _declared(ctypes.CDLL(str(_built(compiler, (*FLAGS, *flags)))))
    except (OSError, subprocess.SubprocessError) as error:
        reason = _reason(error)
        log.warning("the kernels could not be built (%s): plain torch operations are used, which are slower", reason)
        return None


P, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
ATTENTION = [*[P] * 9, *[INT] * 7, FLOAT, INT, FLOAT]
LORA = [P] * 4
SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "paged_attention_float": (ATTENTION, INT),
    "paged_attention_bf16": (ATTENTION, INT),
    "linear": ([P, INT, P, P, P, P, LONG, INT, INT], None),
    "packed_size": ([INT, INT], LONG),
    "pack_weights": ([P, P, INT, INT], None),
    "has_dots": ([], INT),
    "has_tiles": ([], INT),
    "dot_packed_size": ([INT, INT], LONG),
    "pack_dots": ([P, P, INT, INT], None),
    "has_quantized_dots": ([], INT),
    "quantized_size": ([P, INT, INT], LONG),
    "pack_quantized": ([P, P, P, P, P, P, INT, INT], None),
    "deal_rows": ([INT, P, P, P], INT),
    "lora_lay_out": ([P, P, LONG, LONG, *[INT] * 4, P, P], None),
    "lora_add_float": (LORA, None),
    "lora_add_bf16": (LORA, None),
    "lora_add_mixed": (LORA, None),
    "sampling_scratch": ([INT], LONG),
    "choose_tokens": ([P, INT, INT, P], None),
    "tell_logprobs": ([P, INT, INT, P], None),
    "read_memory": ([P, LONG], None),
    "multiply_tiles": ([LONG], ctypes.c_double),
    "decoder_scratch": ([P, P], LONG),
    "decoder_step": ([P, P], None),
}
"""Types of the arguments and of the result of each C function. Pointers are given as numbers (`data_ptr`)."""


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, (arguments, result) in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


def _built(compiler: str, flags: tuple[str, ...]) -> Path:
    code = b"".join(source.read_bytes() for source in SOURCES + HEADERS)
    key = hashlib.sha256(code + repr((flags, compiler, _cpu())).encode()).hexdigest()[:16]
    library = cache_folder() / "kernels" / f"kernels-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        # Built beside its place and renamed, so that no process ever loads half a library.
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            os.replace(_linked(compiler, flags, Path(scratch)), library)
    return library


def _linked(compiler: str, flags: tuple[str, ...], folder: Path) -> Path:
    """A new library in `folder`; the sources are compiled beside one another."""
    objects = [folder / f"{source.stem}.o" for source in SOURCES]

    def run(*words: str | Path) -> None:
        subprocess.run([compiler, *flags, *words], check=True, capture_output=True, timeout=600)

    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda source, target: run("-c", source, "-o", target), SOURCES, objects))
    library = folder / "kernels.so"
    run("-shared", *objects, "-o", library, "-lm")
    return library


def _reason(error: Exception) -> str:
    """What a compiler that ended with an error says about it first; else the error's own words."""
    said = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else ""
    return next((line for line in said.splitlines() if "error:" in line), str(error))


def _cpu() -> str:
    """A text that differs where `NATIVE` does: a cache folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
