"""The scheduler chooses the tokens that the next step computes.

Continuous batching (Yu et al. 2022, Orca) with chunked prefill (Agrawal et al. 2024, arXiv:2403.02310): every step has
one budget of tokens, and long prompts beside running outputs have one of time (`pace.py`). Running decodes come first,
then prompts already begun, then new ones in order of priority and arrival; between the shares of those who ask, whose
turn it is says `shares.py`, and the prompt of one that asks for little does not wait for the decodes of others. Where
blocks run out, the latest comer gives its blocks back and computes them anew later (preemption by recompute); the first
in line never does, so every request gets done. A running sequence also gives its blocks to a waiting one of a higher
priority, or of a share that holds less.
"""

import time
from dataclasses import dataclass, field

from engines.adapters.slots import AdapterSlots
from engines.errors import ContextLengthExceeded, InvalidRequest
from engines.pt.sequences.kv_cache import BlockPool
from engines.pt.sequences.pace import NO_WORK, Kind, Pace, Work, work_of
from engines.pt.sequences.prefixes import is_under_way
from engines.pt.sequences.sequence import Group, Sequence, order_of
from engines.pt.sequences.shares import Amount, Holdings, Queue, Round


@dataclass(frozen=True, slots=True)
class Chunk:
    """`length` tokens of `sequence`, from its first token that has not been computed, and guesses at what follows."""

    sequence: Sequence
    length: int
    guess: list[int] = field(default_factory=list)

    @property
    def completes(self) -> bool:
        """After this chunk the next token can be sampled."""
        return self.length == self.sequence.remaining


class _Step:
    """The chunks of a step that is being put together, and the tokens that are left to it."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self.decodes: list[Chunk] = []
        self.prompts: list[Chunk] = []
        self.lacks_time = False
        """A running sequence has no chunk, as others took the time."""
        self.hurries = False
        """A prompt is computed of a share that has saved: others wait for the next step, so that this one is short."""

    @property
    def chunks(self) -> list[Chunk]:
        return self.decodes + self.prompts

    @property
    def budget(self) -> int:
        return self._budget - len(self.decodes) - self.prompt_tokens

    @property
    def prompt_tokens(self) -> int:
        return sum(chunk.length for chunk in self.prompts)

    @property
    def outputs(self) -> Work:
        return sum((work_of(chunk.sequence.computed, chunk.length) for chunk in self.decodes), NO_WORK)

    @property
    def long_prompts(self) -> Work:
        chunks = (chunk for chunk in self.prompts if chunk.sequence.is_long)
        return sum((work_of(chunk.sequence.computed, chunk.length) for chunk in chunks), NO_WORK)

    @property
    def kind(self) -> Kind:
        if not (self.decodes and self.prompts):
            return Kind.QUIET if self.decodes else Kind.OTHER
        return Kind.BESIDE if self.long_prompts.rows else Kind.OTHER

    def keep(self, running: list[Sequence]) -> None:
        """Leave out the chunks of sequences that do not run any more."""
        self.decodes = [chunk for chunk in self.decodes if chunk.sequence in running]
        self.prompts = [chunk for chunk in self.prompts if chunk.sequence in running]


class Scheduler:
    def __init__(
        self,
        pool: BlockPool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        adapters: AdapterSlots,
        pace: Pace | None = None,
    ) -> None:
        """`pace` None: prompts take what the step's tokens leave them, however long that lasts."""
        self.pool = pool
        self.adapters = adapters
        self.pace = pace
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.running: list[Sequence] = []  # in order of admission
        self.waiting = Queue(max_num_batched_tokens=max_num_batched_tokens)
        self.stuck: Sequence | None = None
        """The first in line where it can never be admitted, as its own siblings, which wait for it, hold what it
        needs."""
        self.blocked = False
        """Whether the last step had nothing to compute, as every waiting sequence waits for an adapter."""
        self.kind = Kind.OTHER
        """Of the last step."""
        self._may_hurry = True  # not in two steps on end: decodes have their turn at least in every second one
        self.waiting_for: dict[str, int] = {}
        """Why sequences wait, after the last step: for an adapter, a prefix that another computes, their share's turn;
        all others for room."""
        self.preemptions = 0
        self.prefix_queries = 0  # in tokens
        self.prefix_hits = 0

    def add(self, sequence: Sequence) -> None:
        sequence.is_long = sequence.remaining > self.max_num_batched_tokens
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is (a fork may be nowhere yet), and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free(sequence)

    def run(self, sequence: Sequence) -> None:
        """Let a sequence run that has its blocks: one just admitted, or a fork of a running one."""
        self.running.append(sequence)
        adapter = sequence.group.request.adapter
        if adapter is not None:
            sequence.slot = self.adapters.acquire(adapter)

    def schedule(self) -> list[Chunk]:
        """Choose the next step's chunks and give each sequence the blocks it needs. Decodes come first in the list."""
        preemptions = self.preemptions
        self.stuck, self.blocked = None, False
        step = _Step(self.max_num_batched_tokens)
        self._add_decodes(step)
        chosen = {id(chunk.sequence) for chunk in step.decodes}
        turns = self.waiting.round(s for s in self.running if s.remaining and id(s) not in chosen)
        # A sequence that just gave up its blocks must not take them back in the same step.
        turns.admits = self.preemptions == preemptions
        if turns.admits:
            self.adapters.begin()
        alike = late = 0
        while (sequence := turns.next()) is not None and self._room(step, sequence) > 0:
            if turns.is_begun(sequence):
                turns.go_on(sequence)
                self._add_prompt(step, sequence)
            elif is_under_way(self.pool, sequence, self._prefix(sequence), self.running):
                turns.pass_over(sequence)
                alike += 1
            elif self._time(step, sequence) == 0:
                turns.pass_over(sequence)
                late += 1
            elif not self.adapters.may_run(sequence.group.request.adapter, begun=sequence.group.forked):
                turns.pass_over(sequence)  # its adapter is on its way or waits for a slot: others may go first
            elif self._admit(sequence):
                self.waiting.remove(sequence)
                self.run(sequence)
                self._add_prompt(step, sequence)
            else:
                turns.admits = self._make_way(sequence, step, turns)
        for chunk in step.decodes:
            self.waiting.charge(chunk.sequence, 1)
        self._may_hurry = not step.hurries
        self.kind = step.kind
        chunks = step.chunks
        adapters = turns.passed - alike - late
        self.blocked = not chunks and adapters == len(self.waiting)
        self._note_waiting(adapters, alike, kept_short=sequence is not None and step.budget > 0)
        if not (self.waiting or turns.has_begun or step.lacks_time) and all(chunk.completes for chunk in chunks):
            self.waiting.counters.forget()
        return chunks

    def _note_waiting(self, adapters: int, alike: int, *, kept_short: bool) -> None:
        """`adapters`: those whose adapter is not there; `alike`: those whose prefix is under way; `kept_short`: the
        step had room, which its turn did not fill."""
        rest = len(self.waiting) - adapters - alike
        waiting = {"adapter": adapters, "prefix": alike, "share": rest if kept_short else 0}
        self.waiting_for = {reason: count for reason, count in waiting.items() if count}

    def _add_decodes(self, step: "_Step") -> None:
        preemptions = self.preemptions
        for sequence in sorted(self.running, key=order_of):
            if step.budget > 0 and sequence.remaining == 1 and sequence in self.running and self._make_room(sequence):
                step.decodes.append(Chunk(sequence, 1))
        if self.preemptions > preemptions:
            step.keep(self.running)  # making room may have preempted a sequence that was chosen before it

    def _room(self, step: "_Step", sequence: Sequence) -> int:
        if step.hurries and not self.waiting.has_saved(sequence):
            return 0
        return min(step.budget, self.waiting.room(sequence, step.prompt_tokens))

    def _time(self, step: "_Step", sequence: Sequence) -> int:
        """How many tokens of a sequence the step has time for. Prompts of one step are not stretched over several."""
        if self.pace is None or not sequence.is_long or (self._may_hurry and self.waiting.has_saved(sequence)):
            return self.max_num_batched_tokens
        time = self.pace.room(step.outputs, step.long_prompts, sequence.computed)
        return self.max_num_batched_tokens if time is None else time

    def _add_prompt(self, step: "_Step", sequence: Sequence) -> None:
        """Whoever has saved does not wait for the decodes of those who have not: these go on in the next step."""
        if self._may_hurry and self.waiting.has_saved(sequence):
            step.hurries = True
            priority = sequence.group.request.priority
            step.decodes = [
                chunk
                for chunk in step.decodes
                if chunk.sequence.group.request.priority < priority or self.waiting.has_saved(chunk.sequence)
            ]
        length = min(sequence.remaining, self._room(step, sequence), self._time(step, sequence))
        if length == 0:
            step.lacks_time = True
            return
        step.prompts.append(Chunk(sequence, length))
        self.waiting.charge(sequence, length)

    def _make_way(self, first: Sequence, step: "_Step", turns: Round) -> bool:
        """Preempt what makes way for the first in line. False where nothing does: it waits, and all behind it."""
        victims = self._victims(first)
        if not victims and not step.chunks and not turns.has_begun:
            victims = self._resting(first)
            self.stuck = None if victims else first
        for victim in victims:
            self._preempt(victim)
            turns.drop(victim)
            if victim.share != first.share:
                turns.taken_from.add(victim.share)
        if victims:
            step.keep(self.running)
        return bool(victims)

    def _victims(self, first: Sequence) -> list[Sequence]:
        """The running sequences that make way for a waiting one: one of a lower priority, or some of a larger share."""
        lower = self._lower(first)
        if lower is not None or len({sequence.share for sequence in self.running} | {first.share}) == 1:
            return [] if lower is None else [lower]
        seats = self._num_running() + first.num_seqs - self.max_num_seqs
        need = self.pool.blocks_for(len(first.tokens))
        known = self._known_prefix(first)
        whole = Amount(self.max_num_seqs, self.pool.num_blocks)
        short = Amount(seats, need - len(known) - self.pool.free)
        holdings = Holdings(self.running, whole, self.waiting.counters.weights)
        return holdings.victims(first, short, Amount(first.num_seqs, need))

    def _lower(self, first: Sequence) -> Sequence | None:
        """The last in line of the running sequences with a lower priority. Beams, which would lose what they found,
        are not among them."""
        priority = first.group.request.priority
        lower = [
            sequence
            for sequence in self.running
            if sequence.group.request.priority > priority and sequence.group.beams is None
        ]
        return max(lower, key=order_of, default=None)

    def _resting(self, first: Sequence) -> list[Sequence]:
        """One sequence to preempt where nothing can run: beams hold what the first in line needs, while their siblings
        wait behind it."""
        others = [sequence for sequence in self.running if sequence.group is not first.group]
        return [max(others, key=order_of)] if others else []

    def _make_room(self, sequence: Sequence) -> bool:
        """Make sure that a decode has a block for its next token; False if it had to give up its own blocks."""
        while len(sequence.blocks) * self.pool.block_size < len(sequence.tokens):
            if self.pool.free:
                sequence.blocks += self.pool.allocate(1)
                continue
            victim = self._last()
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _last(self) -> Sequence:
        """The sequence to preempt where no block is free: the latest of the lowest priority. Among several shares it is
        one of the largest share that runs more than one sequence: each share keeps one.
        """
        lowest = max(sequence.group.request.priority for sequence in self.running)
        running = [sequence for sequence in self.running if sequence.group.request.priority == lowest]
        holdings = Holdings(running, Amount(self.max_num_seqs, self.pool.num_blocks), self.waiting.counters.weights)
        several = [share for share, sequences in holdings.sequences.items() if len(sequences) > 1]
        if len(holdings.sequences) == 1 or not several:
            return max(running, key=order_of)
        return holdings.sequences[holdings.largest(several)][-1]

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        self.add(sequence)
        self.preemptions += 1
        sequence.preemptions += 1

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence all blocks of its tokens, those of a known prefix shared; False if they don't fit
        now.

        A prompt gets its blocks at once: a prefill that has begun never waits for blocks that another one holds.
        """
        if self.running and self._num_running() + sequence.num_seqs > self.max_num_seqs:
            return False
        hits = self._known_prefix(sequence)
        fresh = self.pool.blocks_for(len(sequence.tokens)) - len(hits)
        self.pool.share(hits)
        if fresh > self.pool.free:
            self.pool.release(hits)
            return False
        sequence.blocks = hits + self.pool.allocate(fresh)
        sequence.computed = len(hits) * self.pool.block_size
        sequence.is_long = sequence.remaining > self.max_num_batched_tokens
        self._count(sequence)
        return True

    def _num_running(self) -> int:
        """Number of sequences that run or will fork off a running one."""
        return sum(sequence.num_seqs for sequence in self.running)

    def _known_prefix(self, sequence: Sequence) -> list[int]:
        return self.pool.match(self._prefix(sequence))

    def _prefix(self, sequence: Sequence) -> list[bytes]:
        """The hashes of the blocks that it may share."""
        if sequence.group.request.sampling.prompt_logprobs is not None and not sequence.num_output:
            return []  # every prompt token's logits are asked for
        # The last token is always computed: its logits are what the next token is sampled from.
        full_blocks = (len(sequence.tokens) - 1) // self.pool.block_size
        return sequence.hashes.of(sequence.tokens, full_blocks)

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

    def make_room_for_guess(self, sequence: Sequence, count: int) -> int:
        """Give a running sequence blocks for so many tokens after its last, as far as blocks are free; return how many
        it has room for."""
        short = self.pool.blocks_for(len(sequence.tokens) + count) - len(sequence.blocks)
        if count and short > 0:
            sequence.blocks += self.pool.allocate(min(short, self.pool.free))
        return min(count, len(sequence.blocks) * self.pool.block_size - len(sequence.tokens))

    def give_back_room(self, sequence: Sequence) -> None:
        """Take back the blocks that a guess had, and the tokens that came do not need."""
        needed = self.pool.blocks_for(len(sequence.tokens))
        self.pool.release(sequence.blocks[needed:])
        del sequence.blocks[needed:]

    def guessed(self, sequence: Sequence) -> None:
        """Note that the token that a sequence got last has been computed already."""
        self.waiting.charge(sequence, 1)
        self.computed(Chunk(sequence, 1))

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        if sequence.slot >= 0:
            self.adapters.release(sequence.slot)
        sequence.blocks, sequence.computed, sequence.candidates, sequence.slot = [], 0, None, -1


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
