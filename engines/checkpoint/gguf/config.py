"""The configuration of a model in a GGUF file, as transformers has it.

transformers' own reading (`gguf_file`) leaves out how positions are scaled, the size of Qwen3's heads, and the windows
of Phi-3, takes its defaults for them, and knows neither Granite nor SmolLM3.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy

from engines.checkpoint.gguf.file import GgufFile, unsupported
from engines.checkpoint.gguf.vocabulary import end_ids, special_ids

ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma": ("gemma", "GemmaForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "phi3": ("phi3", "Phi3ForCausalLM"),
    "granite": ("granite", "GraniteForCausalLM"),
    "smollm3": ("smollm3", "SmolLM3ForCausalLM"),
}
"""llama.cpp's architecture -> transformers' `model_type` and class. Mistral's models are of the first."""


def config_of(file: GgufFile) -> Any:
    """A `PreTrainedConfig`. Raises UnsupportedModel."""
    from transformers import AutoConfig

    if file.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise unsupported(file.path, f"is of the architecture {file.architecture}: GGUF files are read of {known}")
    if file.said.get(f"{file.architecture}.expert_count", 0):
        raise unsupported(file.path, "is a mixture of experts, of which GGUF files are not read here")
    model_type, name = ARCHITECTURES[file.architecture]
    extra = EXTRA.get(file.architecture)
    settings = _common(file) | ({} if extra is None else extra(file))
    config = AutoConfig.for_model(model_type, architectures=[name], dtype=_dtype(file), **settings)
    config.name_or_path = str(file.path)
    return config


def generation_config_of(file: GgufFile) -> Any:
    """A `GenerationConfig`, whose ends are all that end an answer."""
    from transformers import GenerationConfig

    ends = end_ids(file)
    return GenerationConfig(**_special(file) | {"eos_token_id": ends[0] if len(ends) == 1 else ends or None})


def head_size(file: GgufFile) -> int:
    size = file.own("embedding_length") // _one(file, "attention.head_count")
    return int(file.own("attention.key_length", size))


def _common(file: GgufFile) -> dict[str, Any]:
    heads = _one(file, "attention.head_count")
    return {
        "vocab_size": _rows_of_the_embedding(file),
        "hidden_size": file.own("embedding_length"),
        "intermediate_size": _one(file, "feed_forward_length"),
        "num_hidden_layers": file.own("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _one(file, "attention.head_count_kv", heads),
        "head_dim": head_size(file),
        "max_position_embeddings": file.own("context_length"),
        "rms_norm_eps": _short(file.own("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "rope_parameters": _rope(file),
        **_special(file),
    }


def _rows_of_the_embedding(file: GgufFile) -> int:
    if "token_embd.weight" not in file.tensors:
        raise unsupported(file.path, "has no weights for its tokens (token_embd)")
    return file.tensors["token_embd.weight"].shape[0]


def _special(file: GgufFile) -> dict[str, Any]:
    return {f"{name}_token_id": id for name, id in special_ids(file).items() if name != "unk"}


def _dtype(file: GgufFile) -> str:
    """The type of its matrices; of those that are quantised, the one in which they lose least for their size."""
    kinds = {tensor.kind for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return "float32" if kinds <= {"F32"} else "float16" if kinds <= {"F32", "F16"} else "bfloat16"


def _one(file: GgufFile, name: str, default: Any = None) -> int:
    """A number that the file may give for each layer by itself. Raises UnsupportedModel where they differ."""
    found = file.own(name, default)
    several = set(found) if isinstance(found, list) else {found}
    if len(several) > 1:
        raise unsupported(file.path, f"has layers of several kinds ({name}), of which none are read here")
    return int(several.pop())


def _short(value: float) -> float:
    """The shortest decimal number that is this float32."""
    return float(str(numpy.float32(value)))


# ---- positions


def _rope(file: GgufFile) -> dict[str, Any]:
    """`rope_parameters`. Raises UnsupportedModel for a scaling that is not known."""
    prefix, theta = f"{file.architecture}.rope", _short(file.own("rope.freq_base", 10000.0))
    kind, factor = file.said.get(f"{prefix}.scaling.type", "none"), file.said.get(f"{prefix}.scaling.factor", 0.0)
    if by_all := file.said.get(f"{prefix}.scale_linear"):  # of files from 2023
        kind, factor = "linear", by_all
    before = file.said.get(f"{prefix}.scaling.original_context_length")
    if "rope_factors_long.weight" in file.tensors:
        long, short = (_values(file, f"rope_factors_{each}.weight") for each in ("long", "short"))
        before = before or file.own("context_length")
        found: dict[str, Any] = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        return {**found, "rope_theta": theta, "original_max_position_embeddings": before}
    if "rope_freqs.weight" in file.tensors:
        return {"rope_theta": theta, **_by_frequency(file, theta)}
    if kind == "none" or (kind in ("linear", "yarn") and not factor):
        return {"rope_type": "default", "rope_theta": theta}
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": _short(factor)}
    if kind == "yarn" and before is not None:
        found = {"rope_type": "yarn", "factor": _short(factor), "original_max_position_embeddings": before}
        return {**found, "rope_theta": theta}
    raise unsupported(file.path, f"scales positions in a way that is not read here: {kind}")


def _values(file: GgufFile, name: str) -> list[float]:
    import torch

    return [_short(value) for value in file.tensors[name].values(torch.float32).tolist()]


def _by_frequency(file: GgufFile, theta: float) -> dict[str, Any]:
    """Llama 3.1's scaling, of which the file has only what it comes to: the number by which each frequency is divided.
    Raises UnsupportedModel where no scaling of that kind comes to it."""
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    wanted = torch.tensor(_values(file, "rope_freqs.weight"))
    size = 2 * len(wanted)
    base = theta ** -(torch.arange(0, size, 2).float() / size)
    for before in _lengths(file):
        found = {
            "rope_type": "llama3", "factor": float(wanted.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": before,
        }  # fmt: skip
        config = LlamaConfig(head_dim=size, rope_parameters={**found, "rope_theta": theta})
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        if torch.allclose(base / scaled, wanted, rtol=1e-4):
            return found
    raise unsupported(file.path, "scales the frequencies of positions otherwise than Llama 3.1 (rope_freqs)")


def _lengths(file: GgufFile) -> Iterator[int]:
    """The context before it was stretched, the usual one first."""
    yield 8192
    length = file.own("context_length")
    while length >= 16:
        yield length
        length //= 2


# ---- what the families have besides


def _gemma(file: GgufFile) -> dict[str, Any]:
    return {"hidden_activation": "gelu_pytorch_tanh"}


def _gemma2(file: GgufFile) -> dict[str, Any]:
    return {
        **_gemma(file),
        "sliding_window": file.own("attention.sliding_window", 4096),
        "attn_logit_softcapping": _short(file.own("attn_logit_softcapping", 50.0)),
        "final_logit_softcapping": _short(file.own("final_logit_softcapping", 30.0)),
        "query_pre_attn_scalar": _largest_differs(file, layers=46),
    }


def _gemma3(file: GgufFile) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": _short(file.own("rope.freq_base_swa", 10000.0))}
    return {
        **_gemma(file),
        "sliding_window": file.own("attention.sliding_window"),
        "query_pre_attn_scalar": _largest_differs(file, layers=62),
        "rope_parameters": {"full_attention": _rope(file), "sliding_attention": local},
    }


def _largest_differs(file: GgufFile, *, layers: int) -> int:
    """By what queries are scaled: the size of a head, but for the largest model of the family, of 27B, where it is the
    share of a head in the layer's size. llama.cpp knows it by its layers, too."""
    shared = file.own("embedding_length") // _one(file, "attention.head_count")
    return shared if file.own("block_count") == layers else head_size(file)


def _phi3(file: GgufFile) -> dict[str, Any]:
    turned = file.own("rope.dimension_count", head_size(file)) / head_size(file)
    found = _rope(file) | {"partial_rotary_factor": turned}
    before = found.get("original_max_position_embeddings", file.own("context_length"))
    window = file.said.get("phi3.attention.sliding_window") or None
    return {"rope_parameters": found, "sliding_window": window, "original_max_position_embeddings": before}


def _granite(file: GgufFile) -> dict[str, Any]:
    return {
        "attention_multiplier": _short(file.own("attention.scale")),
        "embedding_multiplier": _short(file.own("embedding_scale", 1.0)),
        "residual_multiplier": _short(file.own("residual_scale", 1.0)),
        "logits_scaling": _short(file.own("logit_scale", 1.0)),
    }


EXTRA: dict[str, Callable[[GgufFile], dict[str, Any]]] = {
    "gemma": _gemma, "gemma2": _gemma2, "gemma3": _gemma3, "phi3": _phi3, "granite": _granite,
}  # fmt: skip
