"""What the C library keeps of memory that was let go while a model is loaded.

Quantising and packing a layer take its weights in float32, one layer after another. Tensors of up to 32 MiB are pieces
of the heap, which keeps their places.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's numbers (mallopt(3))."""
APART = 1 << 20
LARGEST = 32 << 20
"""Bytes that the heap does not take: while a model is loaded, and afterwards, as glibc would come to by itself."""


@contextmanager
def large_tensors_apart() -> Iterator[None]:
    """While it lasts, tensors of a MiB or more go back to the system at once; at its end, what the heap has left.
    Nothing is done where the C library is not glibc."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(MMAP_THRESHOLD, APART)
    try:
        yield
    finally:
        library.mallopt(MMAP_THRESHOLD, LARGEST)
        library.mallopt(TRIM_THRESHOLD, 2 * LARGEST)
        library.malloc_trim(0)
