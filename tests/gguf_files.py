"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

from pathlib import Path
from typing import Any

import torch
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    RopeScalingType,
    get_tensor_name_map,
)
from gguf.quants import dequantize, quantize
from torch import Tensor

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "phi3": "phi3", "granite": "granite", "smollm3": "smollm3",
}  # fmt: skip
"""transformers' `model_type` -> llama.cpp's architecture."""


def write_gguf(model: Any, path: Path, kind: str = "F32", tokenizer: Any = None, **said: Any) -> dict[str, Tensor]:
    """Write `model` (a `PreTrainedModel`) with matrices of the type `kind`, where its blocks divide their rows, and F16
    where not. `said`: more of what the file says. Returns the weights that it has, by the names of the model."""
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = GGUFWriter(path, architecture)
    _write_config(writer, config)
    if tokenizer is not None:
        _write_tokenizer(writer, tokenizer)
    for name, value in said.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(name.replace("__", "."), value)
    [known] = [arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture]
    meant = _write_tensors(writer, model, known, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def _write_config(writer: Any, config: Any) -> None:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name in ("bos", "eos", "pad"):
        getattr(writer, f"add_{name}_token_id")(getattr(config, f"{name}_token_id"))
    rope = config.rope_parameters
    if config.model_type == "gemma3_text":
        writer.add_float32("gemma3.rope.freq_base_swa", rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config.model_type in ("gemma2", "gemma3_text", "phi3"):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def _write_tokenizer(writer: Any, tokenizer: Any) -> None:
    import json

    said = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [tokenizer.convert_ids_to_tokens(id) for id in range(len(tokenizer))]
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if id in special else 1 for id in range(len(tokens))])
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in said["merges"]])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _write_tensors(writer: Any, model: Any, architecture: MODEL_ARCH, kind: str) -> dict[str, Tensor]:
    config, meant = model.config, {}
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    for path, tensor in model.state_dict().items():
        name = names.get_name(path, try_suffixes=(".weight", ".bias"))
        if path == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float()
        block = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]
        chosen = "F32" if values.dim() == 1 else kind if values.shape[1] % block == 0 else "F16"
        type = GGMLQuantizationType[chosen]
        rounded = torch.tensor(dequantize(quantize(values.numpy(), type), type)).float()
        meant[path] = rounded
        values = _as_llamacpp_has_it(values, name, config, architecture)
        raw = quantize(values.numpy(), type)
        writer.add_tensor(name, raw, raw_dtype=None if chosen in ("F32", "F16") else type)
    if (factors := _factors(config)) is not None:
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    return meant


def _as_llamacpp_has_it(values: Tensor, name: str, config: Any, architecture: MODEL_ARCH) -> Tensor:
    if architecture in (MODEL_ARCH.GEMMA, MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3) and name.endswith("norm.weight"):
        return values + 1
    permuted = architecture in (MODEL_ARCH.LLAMA, MODEL_ARCH.GRANITE, MODEL_ARCH.SMOLLM3)
    part = name.split(".")[2] if name.startswith("blk.") else ""
    if not permuted or part not in ("attn_q", "attn_k"):
        return values
    heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
    halves = values.view(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape)


def _factors(config: Any) -> Tensor | None:
    """By what Llama 3.1 divides each frequency."""
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    size = config.head_dim
    waves = 2 * torch.pi * rope["rope_theta"] ** (torch.arange(0, size, 2).float() / size)
    before, low, high = (rope[name] for name in
                         ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))  # fmt: skip
    share = ((before / waves - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - share) / rope["factor"] + share)
