"""The type that each tensor of a GGUF file has, and tensors in these types.

As llama.cpp chooses them (`llama_tensor_get_type`): norms and biases stay in float32; of the mixed types, what matters
most has more bits; a row whose length the blocks of a type do not divide takes the next type with smaller blocks.
"""

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any

from engines.errors import UnsupportedModel
from engines.setup.install import llamacpp_folder

if TYPE_CHECKING:
    from torch import Tensor

FILES = {
    "f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q6_k": "MOSTLY_Q6_K",
    "q5_k_m": "MOSTLY_Q5_K_M", "q5_k_s": "MOSTLY_Q5_K_S", "q5_1": "MOSTLY_Q5_1", "q5_0": "MOSTLY_Q5_0",
    "q4_k_m": "MOSTLY_Q4_K_M", "q4_k_s": "MOSTLY_Q4_K_S", "q4_1": "MOSTLY_Q4_1", "q4_0": "MOSTLY_Q4_0",
    "q3_k_m": "MOSTLY_Q3_K_M", "q2_k": "MOSTLY_Q2_K",
}  # fmt: skip
"""`to_gguf` -> llama.cpp's type of a file."""
MOST = {
    "q6_k": "Q6_K", "q5_k_m": "Q5_K", "q5_k_s": "Q5_K", "q4_k_m": "Q4_K", "q4_k_s": "Q4_K", "q3_k_m": "Q3_K",
    "q2_k": "Q2_K",
}  # fmt: skip
"""The type of most tensors in files of mixed types; of the others it is that of the file's name."""
SMALLER = {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "Q3_K": "Q4_0", "Q2_K": "Q4_0"}
"""What is taken where blocks of 256 do not divide a row."""
UNQUANTIZED = ("f32", "f16", "bf16")
OUTPUT = ("token_embd.weight", "output.weight")


def type_of(name: str, file: str, *, layer: int, layers: int, tied: bool) -> str:
    """ggml's type of the weights `name` in a file of the type `file`. `tied`: the embedding is the output head too."""
    if file in UNQUANTIZED or file == "q8_0":
        return file.upper()
    if name == "output.weight" or (name == "token_embd.weight" and tied):
        return "Q6_K"
    most = MOST.get(file, file.upper())
    part = name.split(".")[2] if name.startswith("blk.") else ""
    more = _more_bits(layer, layers)
    special = {
        ("q5_k_m", "attn_v"): "Q6_K" if more else most,
        ("q5_k_m", "ffn_down"): "Q6_K" if more else most,
        ("q4_k_m", "attn_v"): "Q6_K" if more else most,
        ("q4_k_m", "ffn_down"): "Q6_K" if more else most,
        ("q4_k_s", "attn_v"): "Q5_K" if layer < 4 else most,
        ("q4_k_s", "ffn_down"): "Q5_K" if layer < layers / 8 else most,
        ("q3_k_m", "attn_v"): "Q5_K" if layer < 2 else "Q4_K",
        ("q3_k_m", "ffn_down"): "Q5_K" if layer < layers / 16 else "Q4_K" if more else most,
        ("q3_k_m", "attn_output"): "Q4_K",
        ("q2_k", "attn_v"): "Q3_K",
        ("q2_k", "ffn_down"): "Q3_K",
        ("q2_k", "attn_output"): "Q3_K",
    }
    return special.get((file, part), most)


def _more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def fitting(kind: str, columns: int) -> str:
    """`kind`, or what is taken in its place for rows of this length."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for each in (kind, SMALLER.get(kind, "F16"), "F16"):
        if columns % GGML_QUANT_SIZES[GGMLQuantizationType[each]][0] == 0:
            return each
    raise AssertionError("F16 has blocks of one")


def quantized(tensor: "Tensor", kind: str) -> Any:
    """`tensor` in ggml's type `kind`: an array of numbers, or of bytes (rows, bytes of a row).

    Raises UnsupportedModel where nothing here can make it.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    values = tensor.float().numpy()
    if kind.endswith("_K"):
        return _by_ggml(values, GGMLQuantizationType[kind])
    return quantize(values, GGMLQuantizationType[kind])


def check_makeable(file: str) -> None:
    """Raises UnsupportedModel for a type of file of which this machine lacks the quantiser."""
    if file in MOST and library() is None:
        message = (
            f"{file} needs llama.cpp's own quantiser: `python -m engines.setup.install llamacpp` installs it; or "
            f"export f16, and run llama.cpp's `llama-quantize model.gguf out.gguf {file}`"
        )
        raise UnsupportedModel(message, param="to_gguf")


@cache
def library() -> Any | None:
    """ggml, as xllamacpp brings it; None where that is not installed."""
    folder = llamacpp_folder()
    found = [*folder.glob("xllamacpp*.so")] if folder is not None else []
    if not found:
        return None
    ggml = ctypes.PyDLL(str(found[0]))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return ggml


def _by_ggml(values: Any, kind: Any) -> Any:
    import numpy
    from gguf import GGML_QUANT_SIZES

    ggml = library()
    assert ggml is not None, "checked"
    rows, columns = values.shape
    block, size = GGML_QUANT_SIZES[kind]
    values = numpy.ascontiguousarray(values)
    made = numpy.empty((rows, columns // block * size), dtype=numpy.uint8)
    ggml.ggml_quantize_chunk(int(kind), values.ctypes.data, made.ctypes.data, 0, rows, columns, None)
    return made
