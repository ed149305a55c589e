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
from training.exports.gguf.types import FILES, check_makeable, fitting, quantized, type_of
from training.exports.gguf.vocabulary import write_vocabulary

if TYPE_CHECKING:
    from torch import Tensor

logging.getLogger("gguf").setLevel(logging.WARNING)  # it tells of every step
ROTATED = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
"""Layers whose rows llama.cpp has in another order, for models of its architecture llama: how many heads they have."""


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
        _write_config(writer, config)
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
    if architecture != "LLAMA" or part not in ROTATED:
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
        name = names.get_name(path, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UnsupportedModel(f"llama.cpp has no tensor for {path}", param="model")
        if name == "output.weight" and tied:
            continue
        layer = int(found[1]) if (found := re.match(r"blk\.(\d+)\.", name)) else 0
        kind = type_of(name, file, layer=layer, layers=layers, tied=tied) if tensor.dim() > 1 else "F32"
        yield Planned(name, in_order(tensor, name, config, architecture), fitting(kind, tensor.shape[-1]))
    if (factors := _frequencies(config)) is not None:
        yield Planned("rope_freqs.weight", factors, "F32")


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


def _write_config(writer: Any, config: Any) -> None:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    _write_rope(writer, config.rope_parameters)


def _write_rope(writer: Any, rope: dict[str, Any]) -> None:
    from gguf import RopeScalingType

    writer.add_rope_freq_base(rope["rope_theta"])
    match rope.get("rope_type", "default"):
        case "default" | "llama3":  # what llama3 changes is a tensor of its own
            pass
        case "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        case "yarn":
            writer.add_rope_scaling_type(RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rope["factor"])
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        case other:
            raise UnsupportedModel(f"rope_type {other!r} is not written to GGUF files", param="model")


def _frequencies(config: Any) -> "Tensor | None":
    """By what the model's rotation divides each frequency, where that is a matter of the frequency (Llama 3.1)."""
    if config.rope_parameters.get("rope_type") != "llama3":
        return None
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    changed, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * len(changed)
    base: Tensor = config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2).float() / size)
    return base / changed


def _file_type(file: str) -> int:
    from gguf import LlamaFileType

    return int(LlamaFileType[FILES[file]])
