"""Siblings: the sequences of one request, which fork off one another. They are its n outputs, or the beams of a search.

They share the KV-cache blocks of the tokens that they have in common.
"""

from collections.abc import Callable
from dataclasses import dataclass

from engines.pt.runner import ModelRunner
from engines.pt.sequences.kv_cache import BlockHashes
from engines.pt.sequences.scheduler import Scheduler
from engines.pt.sequences.sequence import Group, Sequence
from engines.sampler.grammar import GrammarState
from engines.sampler.row import SamplerRow
from engines.text.thinking import Thinking


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence that gets a token, and the one whose logits it is sampled from: itself, or the one it forks off."""

    sequence: Sequence
    parent: Sequence


class Siblings:
    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        eos_token_ids: tuple[int, ...],
        token_bytes: Callable[[int], bytes],
    ) -> None:
        """`token_bytes`: what a token adds to a text."""
        self._scheduler = scheduler
        self._runner = runner
        self._eos_token_ids = eos_token_ids
        self._token_bytes = token_bytes

    def first(self, group: Group, grammar: GrammarState | None) -> Sequence:
        """The sequence that a request begins with."""
        request = group.request
        block_size = self._scheduler.pool.block_size
        hashes = BlockHashes(block_size, adapter=request.adapter, salt=request.cache_salt)
        return Sequence(group, 0, list(request.prompt_ids), hashes, self._sampler(group, 0), grammar)

    def outputs(self, sequence: Sequence) -> list[Row]:
        """The sequence, and where its prompt is complete for the first time, the other outputs of its request."""
        rows = [Row(sequence, sequence)]
        group = sequence.group
        if not group.forked:
            for index in range(1, group.request.n):
                child = self.fork(sequence, index)
                child.sampler = self._sampler(group, index)
                rows.append(Row(child, sequence))
            group.forked = True
        return rows

    def fork(self, parent: Sequence, index: int) -> Sequence:
        """A sequence with its parent's tokens, sampler and constraint, not yet with blocks."""
        grammar = None if parent.grammar is None else parent.grammar.fork()
        child = Sequence(parent.group, index, list(parent.tokens), parent.hashes.copy(), parent.sampler, grammar)
        child.charged = parent.charged
        parent.group.sequences.append(child)
        return child

    def run(self, forks: list[Row]) -> None:
        """Let forks run on their parents' blocks: full ones shared, the last, partial one copied."""
        pool = self._scheduler.pool
        sources: list[int] = []
        targets: list[int] = []
        for fork in forks:
            child, parent = fork.sequence, fork.parent
            full, rest = divmod(parent.computed, pool.block_size)
            if rest and not pool.free:
                self._scheduler.add(child)  # no room for the copy: it computes its tokens itself, later
                continue
            pool.share(parent.blocks[:full])
            child.blocks, child.computed = parent.blocks[:full], parent.computed
            if rest:
                child.blocks = child.blocks + pool.allocate(1)
                sources.append(parent.blocks[full])
                targets.append(child.blocks[full])
            self._scheduler.run(child)
        if sources:
            self._runner.cache.copy_blocks(sources, targets)

    def _sampler(self, group: Group, index: int) -> SamplerRow:
        request, vocab_size = group.request, self._runner.vocab_size
        budget = request.sampling.thinking_budget
        thinking = None if budget is None else Thinking(budget, self._token_bytes)
        return SamplerRow(request.sampling, request.prompt_ids, self._eos_token_ids, index, vocab_size, thinking)
