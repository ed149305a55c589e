"""Decoders of the Llama kind, family by family: where transformers' modules have what `decoder.py` computes.

A family differs from Llama in what its modules are, and in numbers of its config. What is read here is all the kernel
is told of it.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from engines.pt.layers.linear import scale_of

FAMILIES = (
    "Llama",
    "Mistral",
    "Qwen2",
    "Qwen3",
    "Gemma",
    "Gemma2",
    "Gemma3",
    "Phi3",
    "Granite",
    "Olmo2",
    "Olmo3",
    "SmolLM3",
)
TASKS = ("ForCausalLM", "ForSequenceClassification")
NAMES = {family + task for family in FAMILIES for task in TASKS} | {
    "Gemma3ForConditionalGeneration",
    "Gemma3TextForSequenceClassification",
}
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


def has_images(model: Any) -> bool:
    """Whether it is one of Gemma 3's classes for images and text, which have a decoder of text beside a tower."""
    return type(model).__name__ in NAMES and hasattr(model.base_model, "language_model")


def text_of(model: Any) -> Any:
    """What computes text in a model of a known kind."""
    return model.base_model.language_model if has_images(model) else model.base_model


def leave_images(model: Any) -> None:
    """Take the tower away: it would take memory, and no image comes."""
    if has_images(model):
        for name in ("vision_tower", "multi_modal_projector"):
            setattr(model.base_model, name, None)


def linears_of(layer: Any) -> dict[str, Any]:
    """The linear layers by the names of the kernel's matrices. A layer may stand for its neighbours, too: Phi-3's
    `query` gives keys and values, its `gate` what others have `up` for."""
    attention, mlp = layer.self_attn, layer.mlp
    ends = {"output": attention.o_proj, "down": mlp.down_proj}
    if hasattr(attention, "qkv_proj"):
        return {"query": attention.qkv_proj, "gate": mlp.gate_up_proj, **ends}
    entries = {"query": attention.q_proj, "key": attention.k_proj, "value": attention.v_proj}
    return {**entries, "gate": mlp.gate_proj, "up": mlp.up_proj, **ends}


GROUPS = (("query", "key", "value"), ("output",), ("gate", "up"), ("down",))
"""Matrices that get the same input, in the order of the kernel."""


def norms_of(layer: Any) -> dict[str, Any]:
    """The norms by their names in the kernel; None where the layer has none.

    Gemma 2 and 3 have norms before and after attention and MLP, OLMo 2 and 3 only after, the others only before.
    """
    after = hasattr(layer, "post_feedforward_layernorm")
    found = {
        "attention_norm": "input_layernorm",
        "mlp_norm": "pre_feedforward_layernorm" if after else "post_attention_layernorm",
        "attention_after": "post_attention_layernorm" if after else "",
        "mlp_after": "post_feedforward_layernorm",
    }
    norms = {name: getattr(layer, path, None) for name, path in found.items()}
    return norms | {f"{name}_norm": getattr(layer.self_attn, f"{name[0]}_norm", None) for name in ("query", "key")}


def weight_of(norm: Any) -> Tensor:
    """What a norm multiplies by, float32: Gemma's keep what is above 1."""
    weight = norm.weight.detach().float()
    return 1.0 + weight if type(norm).__name__.startswith("Gemma") else weight


def epsilon_of(norm: Any) -> float:
    return float(norm.eps if hasattr(norm, "eps") else norm.variance_epsilon)


def activation_of(layer: Any) -> str | None:
    """Its name, where it is one of those that are known."""
    function = layer.mlp.act_fn if hasattr(layer.mlp, "act_fn") else layer.mlp.activation_fn
    return next((name for name in ACTIVATIONS if type(function) is type(ACT2FN[name])), None)


@dataclass(frozen=True, slots=True)
class Turns:
    """How queries and keys get their positions."""

    frequencies: list[Tensor]
    """Sets of them, each (rotary / 2,)."""
    scales: list[float]
    """What cosines and sines are multiplied by, in each set."""
    layers: list[int]
    """The set of each layer; -1: its queries and keys have no positions."""


def turns_of(base: Any) -> Turns:
    """Gemma 3 and OLMo 3 have a set for each kind of layer; some layers of SmolLM3 take none."""
    rotary = base.rotary_emb
    kinds = list(rotary.rope_type) if isinstance(rotary.rope_type, dict) else []
    prefixes = [f"{kind}_" for kind in kinds] or [""]

    def chosen(number: int) -> int:
        if not getattr(base.layers[number].self_attn, "use_rope", True):
            return -1
        return kinds.index(base.config.layer_types[number]) if kinds else 0

    return Turns(
        [getattr(rotary, f"{prefix}inv_freq") for prefix in prefixes],
        [float(getattr(rotary, f"{prefix}attention_scaling")) for prefix in prefixes],
        [chosen(number) for number in range(len(base.layers))],
    )


@dataclass(frozen=True, slots=True)
class Factors:
    """What numbers are multiplied by on their way."""

    table: float
    """Rows of the embedding table. An adapter's own rows have this already."""
    embedded: float
    """Rows wherever they come from."""
    given: float
    """What attention and MLP add."""
    logits: float
    cap: float
    """Logits become cap * tanh(logits / cap); 0: they do not."""


def factors_of(model: nn.Module) -> Factors:
    """Gemma scales and caps, Granite scales at every place."""
    config = model.config
    return Factors(
        table=scale_of(model.get_input_embeddings()) or 1.0,
        embedded=float(getattr(config, "embedding_multiplier", 1.0)),
        given=float(getattr(config, "residual_multiplier", 1.0)),
        logits=1.0 / float(getattr(config, "logits_scaling", 1.0)),
        cap=float(getattr(config, "final_logit_softcapping", None) or 0.0),
    )
