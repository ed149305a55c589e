"""Machines with less than this one, for whose kind the kernels can be built as well."""

import ctypes
import platform

import pytest

from engines.pt.kernels import build

LESSER_MACHINES = {
    "kernel without AVX512-BF16": ("-mno-avx512bf16",),
    "kernel with AVX2 alone": ("-mno-avx512f",),
    "kernel with SSE alone": ("-mno-avx512f", "-mno-avx2", "-mno-fma"),
}
"""Flags that build the kernels for them."""


def library_with(*flags: str) -> ctypes.CDLL:
    """The kernels as these flags, which are those of x86, have them built."""
    if flags and platform.machine() != "x86_64":
        pytest.skip("the flags are those of x86")
    found = build.load(*flags)
    if found is None and build.load() is None:
        pytest.skip("no C compiler: the engine then runs on plain torch, which other tests cover")
    assert found is not None
    return found
