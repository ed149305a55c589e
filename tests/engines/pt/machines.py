"""Machines with less than this one, for whose kind the kernels can be built as well."""

LESSER_MACHINES = {
    "kernel without AVX512-BF16": ("-mno-avx512bf16",),
    "kernel with AVX2 alone": ("-mno-avx512f",),
    "kernel with SSE alone": ("-mno-avx512f", "-mno-avx2", "-mno-fma"),
}
"""Flags that build the kernels for them."""
