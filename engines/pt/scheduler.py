"""The scheduler chooses the tokens that the next step computes.

Continuous batching (Yu et al. 2022, Orca) with chunked prefill (Agrawal et al. 2024, arXiv:2403.02310): every step has
one budget of tokens. Running decodes come first, then prompts already begun, then new ones in order of priority and
arrival. Where blocks run out, the latest comer gives its blocks back and computes them anew later (preemption by
recompute); the first in line never does, so every request gets done. A running sequence also gives its blocks to a
waiting one of a higher priority.
"""

import time
from bisect import insort
from dataclasses import dataclass

from engines.adapters.slots import AdapterSlots
from engines.errors import ContextLengthExceeded, InvalidRequest
from engines.pt.kv_cache import BlockPool
from engines.pt.sequence import Group, Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """`length` tokens of `sequence`, from its first token that has not been computed."""

    sequence: Sequence
    length: int

    @property
    def completes(self) -> bool:
        """After this chunk the next token can be sampled."""
        return self.length == self.sequence.remaining


class Scheduler:
    def __init__(
        self, pool: BlockPool, *, max_num_seqs: int, max_num_batched_tokens: int, adapters: AdapterSlots
    ) -> None:
        self.pool = pool
        self.adapters = adapters
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.running: list[Sequence] = []  # in order of admission
        self.waiting: list[Sequence] = []  # in order of `Group.order`
        self.stuck: Sequence | None = None
        """The first in line where it can never be admitted, as its own siblings, which wait for it, hold what it
        needs."""
        self.blocked = False
        """Whether the last step had nothing to compute, as every waiting sequence waits for an adapter."""
        self.preemptions = 0
        self.prefix_queries = 0  # in tokens
        self.prefix_hits = 0

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is (a fork may be nowhere yet), and free its blocks."""
        for queue in (self.running, self.waiting):
            if sequence in queue:
                queue.remove(sequence)
        self._free(sequence)

    def run(self, sequence: Sequence) -> None:
        """Let a sequence run that has its blocks: one just admitted, or a fork of a running one."""
        self.running.append(sequence)
        adapter = sequence.group.request.adapter
        if adapter is not None:
            sequence.slot = self.adapters.acquire(adapter)

    def schedule(self) -> list[Chunk]:
        """Choose the next step's chunks and give each sequence the blocks it needs. Decodes come first in the list."""
        budget = self.max_num_batched_tokens
        preemptions = self.preemptions
        self.stuck, self.blocked = None, False
        chunks: list[Chunk] = []
        for sequence in sorted(self.running, key=_order):
            if budget > 0 and sequence.remaining == 1 and sequence in self.running and self._make_room(sequence):
                chunks.append(Chunk(sequence, 1))
                budget -= 1
        # Making room may have preempted a sequence that was chosen before it.
        chunks = [chunk for chunk in chunks if chunk.sequence in self.running]
        chosen = {id(chunk.sequence) for chunk in chunks}
        for sequence in self.running:
            if budget > 0 and sequence.remaining and id(sequence) not in chosen:
                chunks.append(Chunk(sequence, min(sequence.remaining, budget)))
                budget -= chunks[-1].length
        if self.preemptions > preemptions:
            return chunks  # a sequence that just gave up its blocks must not take them back in the same step
        self.adapters.begin()
        passed = 0  # sequences at the front whose adapter is on its way or waits for a slot: others may go first
        while budget > 0 and passed < len(self.waiting):
            sequence = self.waiting[passed]
            group = sequence.group
            if not self.adapters.may_run(group.request.adapter, begun=group.forked):
                passed += 1
            elif self._admit(sequence):
                self.waiting.remove(sequence)
                self.run(sequence)
                chunks.append(Chunk(sequence, min(sequence.remaining, budget)))
                budget -= chunks[-1].length
            elif (victim := self._lower(sequence)) is not None:
                self._preempt(victim)
                budget += sum(chunk.length for chunk in chunks if chunk.sequence is victim)
                chunks = [chunk for chunk in chunks if chunk.sequence is not victim]
            elif chunks or not self._preempt_resting(sequence):
                self.stuck = None if chunks else sequence
                break
        self.blocked = not chunks and passed == len(self.waiting)
        return chunks

    def _lower(self, first: Sequence) -> Sequence | None:
        """The last in line of the running sequences with a lower priority. Beams, which would lose what they found,
        are not among them."""
        priority = first.group.request.priority
        lower = [
            sequence
            for sequence in self.running
            if sequence.group.request.priority > priority and sequence.group.beams is None
        ]
        return max(lower, key=_order, default=None)

    def _preempt_resting(self, first: Sequence) -> bool:
        """Nothing moves: beams rest on what the first in line needs, and their siblings wait behind it. Preempt one."""
        others = [sequence for sequence in self.running if sequence.group is not first.group]
        if others:
            self._preempt(max(others, key=_order))
        return bool(others)

    def _make_room(self, sequence: Sequence) -> bool:
        """Make sure that a decode has a block for its next token; False if it had to give up its own blocks."""
        while len(sequence.blocks) * self.pool.block_size < len(sequence.tokens):
            if self.pool.free:
                sequence.blocks += self.pool.allocate(1)
                continue
            victim = max(self.running, key=_order)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        self.add(sequence)
        self.preemptions += 1

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence all blocks of its tokens, those of a known prefix shared; False if they don't fit
        now.

        A prompt gets its blocks at once: a prefill that has begun never waits for blocks that another one holds.
        """
        if self.running and self._num_running() + _num_seqs(sequence) > self.max_num_seqs:
            return False
        hits = self._known_prefix(sequence)
        fresh = self.pool.blocks_for(len(sequence.tokens)) - len(hits)
        self.pool.share(hits)
        if fresh > self.pool.free:
            self.pool.release(hits)
            return False
        sequence.blocks = hits + self.pool.allocate(fresh)
        sequence.computed = len(hits) * self.pool.block_size
        self._count(sequence)
        return True

    def _num_running(self) -> int:
        """Number of sequences that run or will fork off a running one."""
        return sum(_num_seqs(sequence) for sequence in self.running)

    def _known_prefix(self, sequence: Sequence) -> list[int]:
        if sequence.group.request.sampling.prompt_logprobs is not None and not sequence.num_output:
            return []  # every prompt token's logits are asked for
        # The last token is always computed: its logits are what the next token is sampled from.
        full_blocks = (len(sequence.tokens) - 1) // self.pool.block_size
        return self.pool.match(sequence.hashes.of(sequence.tokens, full_blocks))

    def _count(self, sequence: Sequence) -> None:
        group = sequence.group
        if group.cached_tokens is None:
            group.cached_tokens = sequence.computed
            group.queue_seconds = time.monotonic() - group.added
            self.prefix_queries += len(sequence.tokens)
            self.prefix_hits += sequence.computed

    def computed(self, chunk: Chunk) -> None:
        """Note that a chunk's keys and values are in its blocks, and make the blocks it filled findable."""
        sequence = chunk.sequence
        first = sequence.computed // self.pool.block_size
        sequence.computed += chunk.length
        full = sequence.computed // self.pool.block_size
        if full > first:
            hashes = sequence.hashes.of(sequence.tokens, full)
            for block, block_hash in zip(sequence.blocks[first:full], hashes[first:full], strict=True):
                self.pool.cache(block, block_hash)

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        if sequence.slot >= 0:
            self.adapters.release(sequence.slot)
        sequence.blocks, sequence.computed, sequence.candidates, sequence.slot = [], 0, None, -1


def _num_seqs(sequence: Sequence) -> int:
    """Number of sequences that this one runs as, once its siblings have forked off."""
    return 1 if sequence.group.forked else sequence.group.num_seqs


def _order(sequence: Sequence) -> tuple[tuple[int, int], int]:
    return (sequence.group.order, sequence.index)


def check_fits(group: Group, pool: BlockPool, max_num_seqs: int) -> None:
    """Raise InvalidRequest for a request that can never run with this pool."""
    if group.num_seqs > max_num_seqs:
        raise InvalidRequest(
            f"{group.num_seqs} outputs at once are more than the {max_num_seqs} sequences this engine runs",
            param="n" if group.request.sampling.num_beams == 1 else "num_beams",
        )
    if pool.blocks_for(group.num_prompt) > pool.num_blocks:
        tokens = pool.num_blocks * pool.block_size
        raise ContextLengthExceeded(f"a prompt of {group.num_prompt} tokens does not fit the cache of {tokens}")
