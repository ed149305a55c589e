"""What an engine with its model can honour. It decides what the server refuses before a request reaches the engine."""

from dataclasses import dataclass, field

from engines.types import StructuredKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    max_model_len: int
    """Prompt and output together, in tokens."""
    vocab_size: int
    """Width of the logits: token ids are below it."""
    max_logprobs: int = 20
    eos_token_ids: tuple[int, ...] = ()
    structured: frozenset[StructuredKind] = frozenset()
    unsupported: frozenset[str] = field(default_factory=frozenset)
    """Fields of `Sampling` and `GenerationRequest` that this engine cannot honour: a request that sets one is refused."""
    embeddings: bool = False
    max_beams: int = 1
