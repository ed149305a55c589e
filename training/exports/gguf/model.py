"""A whole model as a GGUF file."""

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import UnsupportedModel
from training.exports.gguf import architecture_of
from training.exports.gguf.config import tensors_of, write_config
from training.exports.gguf.types import FILES, check_makeable, fitting, quantized, type_of
from training.exports.gguf.vocabulary import write_vocabulary

if TYPE_CHECKING:
    from torch import Tensor

logging.getLogger("gguf").setLevel(logging.WARNING)  # it tells of every step
PERMUTED = ("LLAMA", "GRANITE", "SMOLLM3")
ROTATED = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
"""Layers whose rows llama.cpp has in another order, for models of these architectures: how many heads they have."""
ABOVE_ONE = ("GEMMA", "GEMMA2", "GEMMA3")
"""Architectures whose norms it keeps with the one that they are above."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to write."""

    name: str
    """llama.cpp's."""
    tensor: "Tensor"
    kind: str
    """ggml's type."""


def write_model(model: Any, tokenizer: Any, folder: Path, target: Path, file: str, *, name: str) -> None:
    """Write `target`, with weights of the type `file`. `folder`: of the model's other files.

    Raises UnsupportedModel.
    """
    from gguf import GGUFWriter

    config = model.config
    architecture = architecture_of(config)
    check_makeable(file)
    planned = list(_planned(model, architecture, file))
    writer = GGUFWriter(target, architecture.lower())
    try:
        writer.add_type("model")
        writer.add_name(name)
        write_config(writer, config, architecture)
        writer.add_file_type(_file_type(file))
        writer.add_quantization_version(2)
        write_vocabulary(writer, tokenizer, folder, config.vocab_size)
        _write_tensors(writer, planned)
    finally:
        writer.close()


def names_of(config: Any, architecture: str) -> Any:
    """A `gguf.TensorNameMap`: transformers' names of tensors -> llama.cpp's."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    return get_tensor_name_map(MODEL_ARCH[architecture], config.num_hidden_layers)


def in_order(tensor: "Tensor", name: str, config: Any, architecture: str) -> "Tensor":
    """`tensor` with its rows as llama.cpp has them, which rotates pairs of neighbours where transformers rotates the
    halves of a head."""
    part = name.split(".")[2] if name.startswith("blk.") else ""
    if architecture not in PERMUTED or part not in ROTATED:
        return tensor
    heads = getattr(config, ROTATED[part])
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _planned(model: Any, architecture: str, file: str) -> Iterator[Planned]:
    config = model.config
    names, layers = names_of(config, architecture), config.num_hidden_layers
    tensors = model.state_dict()
    tied = bool(config.tie_word_embeddings) or "lm_head.weight" not in tensors
    for path, tensor in tensors.items():
        if path == "lm_head.weight" and tied:
            continue
        name = names.get_name(path, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UnsupportedModel(f"llama.cpp has no tensor for {path}", param="model")
        layer = int(found[1]) if (found := re.match(r"blk\.(\d+)\.", name)) else 0
        kind = type_of(name, file, layer=layer, layers=layers, tied=tied) if tensor.dim() > 1 else "F32"
        if architecture in ABOVE_ONE and name.endswith("norm.weight"):
            tensor = tensor.float() + 1
        yield Planned(name, in_order(tensor, name, config, architecture), fitting(kind, tensor.shape[-1]))
    for name, factors in tensors_of(config):
        yield Planned(name, factors, "F32")


def _write_tensors(writer: Any, planned: list[Planned]) -> None:
    """One at a time, so that no more than one is in memory twice."""
    import numpy
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    plain = {"F32": numpy.float32, "F16": numpy.float16}
    for each in planned:
        shape, kind = tuple(each.tensor.shape), GGMLQuantizationType[each.kind]
        if each.kind in plain:
            dtype = numpy.dtype(plain[each.kind])
            writer.add_tensor_info(each.name, shape, dtype, math.prod(shape) * dtype.itemsize)
        else:
            stored = quant_shape_to_byte_shape(shape, kind)
            writer.add_tensor_info(each.name, stored, numpy.dtype(numpy.uint8), math.prod(stored), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for each in planned:
        writer.write_tensor_data(quantized(each.tensor, each.kind))


def _file_type(file: str) -> int:
    from gguf import LlamaFileType

    return int(LlamaFileType[FILES[file]])
