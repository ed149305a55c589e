"""What the engine knows of one request while it runs: a group of sequences that began with one prompt."""

import time
from dataclasses import dataclass, field

from engines.pt.beam_search import BeamSearch
from engines.pt.kv_cache import BlockHashes
from engines.sampler.grammar import GrammarState
from engines.sampler.sampling import SamplerRow
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
    """How many of `tokens` have their keys and values in `blocks`."""
    blocks: list[int] = field(default_factory=list)
    slot: int = -1
    """Of its adapter, while it runs with one."""
    candidates: list[tuple[int, float]] | None = None
    """Of a beam: its likeliest next tokens. It then rests until its siblings have theirs."""

    @property
    def remaining(self) -> int:
        """Tokens still to compute before the next one can be sampled; 1 while decoding, 0 while resting."""
        return len(self.tokens) - self.computed

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.group.num_prompt


@dataclass(slots=True, eq=False)
class Group:
    """A request. It starts as one sequence; once its prompt is computed, the other outputs or beams fork off."""

    request: GenerationRequest
    arrival: int
    num_prompt: int
    embed: bool = False
    """Wants the last hidden state, not tokens."""
    forked: bool = False
    ended: set[int] = field(default_factory=set)
    """Outputs that nobody wants any more, of those that had not begun when this was said."""
    beams: BeamSearch | None = None
    sequences: list[Sequence] = field(default_factory=list)
    """Those that have not finished."""
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache when it was first admitted."""
    added: float = field(default_factory=time.monotonic)
    queue_seconds: float | None = None
    """From its arrival to its first admission."""
    announced: bool = False
    """Its first output, with the facts about the prompt, has been sent."""
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first: lower is sooner."""
        return (self.request.priority, self.arrival)

    @property
    def seats(self) -> int:
        """How many sequences it will run at once."""
        if self.forked:
            return len(self.sequences)
        return max(self.request.n, self.request.sampling.num_beams)
