"""A request while it runs: a group of sequences that began with one prompt."""

import time
from dataclasses import dataclass, field
from typing import Literal

from engines.pt.sequences.beam_search import BeamSearch
from engines.pt.sequences.drafter import Draft, Drafter
from engines.pt.sequences.kv_cache import BlockHashes
from engines.sampler.grammar import GrammarState
from engines.sampler.row import SamplerRow
from engines.types import GenerationRequest, TokenLogprob


@dataclass(slots=True, eq=False)
class Sequence:
    """One row of text: prompt and output so far, and the blocks that hold its keys and values."""

    group: "Group"
    index: int
    tokens: list[int]
    hashes: BlockHashes
    sampler: SamplerRow
    grammar: GrammarState | None = None
    computed: int = 0
    """Number of `tokens` whose keys and values are in `blocks`."""
    blocks: list[int] = field(default_factory=list)
    charged: int = 0
    """Number of `tokens` that its share has been charged for."""
    is_long: bool = False
    """Whether what was to be computed of it, when it came or was admitted, was more than a step."""
    preemptions: int = 0
    slot: int = -1
    """Slot of its adapter while it runs; -1: the base model, or not running."""
    candidates: list[tuple[int, float]] | None = None
    """Likeliest next tokens of a beam, which then rests until its siblings have theirs."""
    drafter: Drafter | None = None
    """Guesses at its tokens; None until it decodes."""
    draft: Draft | None = None
    """The guesses of the step that runs."""

    @property
    def remaining(self) -> int:
        """Tokens still to compute before the next one can be sampled; 1 while decoding, 0 while resting."""
        return len(self.tokens) - self.computed

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.group.num_prompt

    @property
    def share(self) -> str | None:
        return self.group.request.share

    @property
    def num_seqs(self) -> int:
        """Number of sequences that this one runs as, once its siblings have forked off."""
        return 1 if self.group.forked else self.group.num_seqs


def order_of(sequence: Sequence) -> tuple[tuple[int, int], int]:
    """Place in the order of priority and arrival: lower is sooner."""
    return (sequence.group.order, sequence.index)


@dataclass(slots=True, eq=False)
class Group:
    """A request. It starts as one sequence; once its prompt is computed, the other outputs or beams fork off."""

    request: GenerationRequest
    arrival: int
    num_prompt: int
    pooling: Literal["embed", "classify"] | None = None
    """What is asked for of the last token, where no tokens are."""
    forked: bool = False
    ended: set[int] = field(default_factory=set)
    """Outputs that were finished from outside before they had begun."""
    beams: BeamSearch | None = None
    sequences: list[Sequence] = field(default_factory=list)
    """Sequences that have not finished."""
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache when it was first admitted."""
    added: float = field(default_factory=time.monotonic)
    queue_seconds: float | None = None
    """Seconds from its arrival to its first admission."""
    announced: bool = False
    """Whether its first output, with the facts about the prompt, has been reported."""
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)

    @property
    def order(self) -> tuple[int, int]:
        """Place in the queue: lower is sooner."""
        return (self.request.priority, self.arrival)

    @property
    def num_seqs(self) -> int:
        """Number of sequences that it runs at once."""
        if self.forked:
            return len(self.sequences)
        return max(self.request.n, self.request.sampling.num_beams)
