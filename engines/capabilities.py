"""The abilities of an engine with its model: they decide what the server refuses before a request reaches the
engine."""

from dataclasses import dataclass, field

from engines.types import Head, StructuredKind


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSupport:
    """The LoRA adapters that an engine can serve on its model. Modules are named by their path in the model."""

    max_rank: int
    linears: dict[str, tuple[int, int]]
    """(in_features, out_features) of every layer that may be adapted."""
    embeddings: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(num_embeddings, embedding_dim) of every embedding that may be adapted."""
    replaceable: frozenset[str] = frozenset()
    """Modules in whose place an adapter may bring one of its own (PEFT's `modules_to_save`)."""
    head_inputs: int | None = None
    """Width of the hidden states that a head gets which an adapter brings, to classify; None: adapters bring none."""
    padding: int | None = None
    """Token that the model pads with, where an adapter with a head does not say its own."""
    experts: frozenset[str] = frozenset()
    """Paths by which PEFT adapts experts and their routers, which no adapter that is served may change."""
    max_pinned: int = 0
    """Number of adapters that may be pinned: never swapped out of their slots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    max_model_len: int
    """Prompt and output together, in tokens."""
    vocab_size: int
    """Width of the logits: token ids are below it."""
    max_logprobs: int = 20
    """Likeliest tokens that it tells with each; -1: all."""
    eos_token_ids: tuple[int, ...] = ()
    structured: frozenset[StructuredKind] = frozenset()
    unsupported: frozenset[str] = field(default_factory=frozenset)
    """Fields of `Sampling` and `GenerationRequest` that this engine does not support: a request that sets one is
    refused."""
    embeddings: bool = False
    head: Head | None = None
    """What a model for sequence classification has, which generates nothing; None: a causal language model."""
    max_beams: int = 1
    adapters: AdapterSupport | None = None
    """None: this engine serves the base model only."""
    cache_config: dict[str, str] = field(default_factory=dict)
    """What there is to know of the KV cache, under vLLM's names: `block_size`, `num_gpu_blocks`, ..."""
    predictions: bool = False
    """Whether it uses what requests predict of their outputs."""
    sleep: bool = False
    """Whether the engine can give up its memory for a while."""
