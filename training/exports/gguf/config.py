"""What a GGUF file says of a model: its sizes, how it tells positions apart, and what its family has besides."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from engines.errors import UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = {"GEMMA2": 46, "GEMMA3": 62}
"""Layers of the models whose queries llama.cpp scales by the share of a head in the layer's size."""
NO_ROPE_EACH = 4
"""Of SmolLM3 every so manyth layer tells no positions apart."""


def write_config(writer: Any, config: Any, architecture: str) -> None:
    """`config`: a `PreTrainedConfig`. Raises UnsupportedModel for what llama.cpp does otherwise."""
    heads = config.num_attention_heads
    size = head_size(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(_context(config, architecture))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = rope_of(config)
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    _write_rope(writer, rope)
    if (family := FAMILIES.get(architecture)) is not None:
        family(writer, config)


def head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rope_of(config: Any) -> dict[str, Any]:
    """`rope_parameters`; of layers of several kinds, those of the layers that see all that was before."""
    rope: dict[str, Any] = config.rope_parameters.get("full_attention", config.rope_parameters)
    return rope


def tensors_of(config: Any) -> "Iterator[tuple[str, Tensor]]":
    """What llama.cpp has as tensors of how positions are scaled."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = rope_of(config)
    if rope.get("rope_type") == "llama3":
        changed, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        size = 2 * len(changed)
        yield "rope_freqs.weight", rope["rope_theta"] ** -(torch.arange(0, size, 2).float() / size) / changed


def _context(config: Any, architecture: str) -> int:
    """Tokens of a text: of Mistral and Phi-3 as many as a window has, as llama.cpp looks back without one.

    Raises UnsupportedModel."""
    longest = int(config.max_position_embeddings)
    if config.model_type in ("mistral", "phi3"):
        return longest if config.sliding_window is None else min(longest, int(config.sliding_window))
    if not architecture.startswith("GEMMA") and "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise _unsupported("some of its layers look back a window of tokens, and llama.cpp's all the way")
    return longest


def _write_rope(writer: Any, rope: dict[str, Any]) -> None:
    """Raises UnsupportedModel."""
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
            raise _unsupported(f"rope_type {other!r} is not written to GGUF files")


# ---- what the families have besides


def _gemma(writer: Any, config: Any) -> None:
    found = getattr(config, "hidden_activation", None) or config.hidden_act
    if found != "gelu_pytorch_tanh":
        raise _unsupported(f"llama.cpp's Gemma has gelu_pytorch_tanh, not {found}")


def _gemma2(writer: Any, config: Any) -> None:
    _gemma(writer, config)
    _check_windows(config)
    _check_queries(config, LARGEST["GEMMA2"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3(writer: Any, config: Any) -> None:
    _gemma(writer, config)
    _check_windows(config)
    _check_queries(config, LARGEST["GEMMA3"])
    local = config.rope_parameters["sliding_attention"]
    if local.get("rope_type", "default") != "default":
        raise _unsupported(f"positions of layers with a window are scaled by {local['rope_type']!r}")
    writer.add_sliding_window(config.sliding_window)
    writer.add_float32("gemma3.rope.freq_base_swa", local["rope_theta"])


def _granite(writer: Any, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _phi3(writer: Any, config: Any) -> None:
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)


def _smollm3(writer: Any, config: Any) -> None:
    usual = [int(bool((layer + 1) % NO_ROPE_EACH)) for layer in range(config.num_hidden_layers)]
    if list(config.no_rope_layers) != usual:
        raise _unsupported(f"llama.cpp's SmolLM3 tells positions apart in all layers but each {NO_ROPE_EACH}th")


FAMILIES: dict[str, Callable[[Any, Any], None]] = {
    "GEMMA": _gemma, "GEMMA2": _gemma2, "GEMMA3": _gemma3, "PHI3": _phi3, "GRANITE": _granite, "SMOLLM3": _smollm3,
}  # fmt: skip
"""llama.cpp's architecture -> what it says besides."""


def _check_windows(config: Any) -> None:
    """Raises UnsupportedModel where other layers have windows than those that llama.cpp gives them to."""
    usual = type(config)(num_hidden_layers=config.num_hidden_layers).layer_types
    if list(config.layer_types) != list(usual):
        raise _unsupported("other layers look back a window of tokens than in llama.cpp")


def _check_queries(config: Any, largest: int) -> None:
    share = config.hidden_size // config.num_attention_heads
    known = share if config.num_hidden_layers == largest else head_size(config)
    if config.query_pre_attn_scalar != known:
        raise _unsupported(f"queries are scaled by {config.query_pre_attn_scalar}, in llama.cpp by {known}")


def _unsupported(reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"no GGUF file is made of this model: {reason}", param="model")
