"""What each share gets while others ask for more than there is, in steps and tokens, without a model."""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import pytest

from engines.adapters.slots import AdapterSlots
from engines.fairness.counters import OUTPUT_COST
from engines.pt.sequences.kv_cache import BlockHashes, BlockPool
from engines.pt.sequences.scheduler import Scheduler
from engines.pt.sequences.sequence import Group, Sequence
from engines.pt.sequences.shares import RECENT_STEPS, SAVED_STEPS, SHORT
from engines.types import GenerationRequest, Sampling

BLOCK = 4
BUDGET = 32


@dataclass
class Line:
    """One engine's scheduler, driven as the core drives it, and what came of each share's requests."""

    max_num_seqs: int = 8
    num_blocks: int = 4096
    steps: int = 0
    lengths: list[list[tuple[str, int]]] = field(default_factory=list)
    """(request id, tokens) of each step's chunks."""
    service: dict[str | None, float] = field(default_factory=lambda: defaultdict(float))
    """Tokens computed for each share for the first time, those of outputs counted as they cost."""
    first: dict[str, int] = field(default_factory=dict)
    """Request id -> number of the step that gave its first token."""
    ended: list[str] = field(default_factory=list)
    computed: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        pool = BlockPool(self.num_blocks, BLOCK, prefix_caching=False)
        slots = AdapterSlots(0)
        seats = self.max_num_seqs
        self.scheduler = Scheduler(pool, max_num_seqs=seats, max_num_batched_tokens=BUDGET, adapters=slots)
        self.arrivals = 0

    def ask(self, share: str | None, prompt: int, output: int, **changes: Any) -> str:
        """A request; its id."""
        name = f"{share}-{self.arrivals}"
        request = GenerationRequest(
            request_id=name,
            prompt_ids=[self.arrivals] * prompt,
            sampling=Sampling(max_new_tokens=output),
            share=share,
            **changes,
        )
        group = Group(request, self.arrivals, prompt)
        self.arrivals += 1
        tokens = list(request.prompt_ids)
        sequence = Sequence(group, 0, tokens, BlockHashes(BLOCK, adapter=name), cast(Any, None))
        group.sequences.append(sequence)
        self.scheduler.add(sequence)
        return name

    def step(self) -> None:
        self.steps += 1
        chunks = self.scheduler.schedule()
        self.lengths.append([(chunk.sequence.group.request.request_id, chunk.length) for chunk in chunks])
        for chunk in chunks:
            sequence, completes = chunk.sequence, chunk.completes
            request = sequence.group.request
            self._count(request, sequence.computed + chunk.length, sequence.group.num_prompt)
            self.scheduler.computed(chunk)
            if completes:
                self.first.setdefault(request.request_id, self.steps)
                sequence.tokens.append(0)
                if sequence.num_output == request.sampling.max_new_tokens:
                    self.scheduler.remove(sequence)
                    self.ended.append(request.request_id)

    def _count(self, request: GenerationRequest, end: int, prompt: int) -> None:
        start = self.computed[request.request_id]
        outputs = max(0, end - max(start, prompt))
        self.service[request.share] += max(0, end - start) + (OUTPUT_COST - 1) * outputs
        self.computed[request.request_id] = max(start, end)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if self.scheduler.running or self.scheduler.waiting:
                self.step()

    @property
    def running(self) -> Counter[str | None]:
        return Counter(sequence.share for sequence in self.scheduler.running)


def greedy(line: Line, share: str = "greedy", *, requests: int = 64, prompt: int = 100, output: int = 200) -> None:
    for _ in range(requests):
        line.ask(share, prompt, output)


# ---- what is waited for


def test_who_waits_waits_for_room_or_while_others_ask_for_the_shares_turn() -> None:
    line = Line(max_num_seqs=2)
    greedy(line, requests=6)
    line.run(1)
    assert line.scheduler.waiting_for == {}  # the two seats are taken
    several = Line(max_num_seqs=64)
    greedy(several, "one", requests=8, prompt=BUDGET)
    greedy(several, "other", requests=8, prompt=BUDGET)
    several.run(1)
    assert several.scheduler.waiting_for == {"share": len(several.scheduler.waiting)}


# ---- who asks little


@pytest.mark.parametrize(("prompt", "steps"), [(3, 1), (20, 1), (32, 1), (57, 2), (58, 3), (100, 4)])
@pytest.mark.parametrize("after", [30, 31, 100])
def test_one_who_asks_little_is_answered_at_once_however_much_another_asks(prompt: int, steps: int, after: int) -> None:
    """By turns it has all tokens of a step, and all but the decodes'."""
    line = Line()
    greedy(line)
    line.run(after)
    name = line.ask("little", prompt, 5)
    line.run(20)
    assert BUDGET + (BUDGET - (line.max_num_seqs - 1)) == 57
    assert line.first[name] - after == steps


def test_its_prompt_does_not_wait_for_the_decodes_of_others_but_of_its_own() -> None:
    line = Line()
    greedy(line)
    line.run(30)
    first = line.ask("little", 10, 20)
    line.run(5)
    assert line.lengths[30] == [(first, 10)]
    assert len(line.lengths[31]) == line.max_num_seqs, "all the others again"
    second = line.ask("little", 10, 20)
    line.run(1)
    assert line.lengths[35] == [(first, 1), (second, 10)]


def test_decodes_of_a_higher_priority_do_not_wait() -> None:
    line = Line(max_num_seqs=9)
    urgent = line.ask("urgent", 5, 200, priority=-1)
    greedy(line)
    line.run(30)
    name = line.ask("little", 10, 5)
    line.run(1)
    assert line.lengths[30] == [(urgent, 1), (name, 10)]


def test_decodes_go_on_in_every_second_step_at_least_however_often_others_ask() -> None:
    line = Line()
    greedy(line)
    line.run(30)
    for number in range(100):
        line.ask(f"little-{number % 10}", 3, 1)
        line.step()
    without = [not any(name.startswith("greedy") for name, _ in chunks) for chunks in line.lengths[30:]]
    assert any(without) and not any(map(all, pairwise(without)))


def test_it_is_answered_at_once_again_and_again() -> None:
    line = Line()
    greedy(line)
    line.run(10)
    for _ in range(20):
        before, name = line.steps, line.ask("little", 20, 10)
        line.run(30)
        assert line.first[name] == before + 1
    assert line.scheduler.preemptions <= 20  # one at most for each: a seat


def test_prompts_that_fill_the_cache_make_way_for_it() -> None:
    line = Line(num_blocks=100)
    greedy(line, prompt=120, output=10)
    line.run(10)
    assert line.scheduler.pool.free < 10
    name = line.ask("little", 80, 5)
    line.run(6)
    assert name in line.first


def test_nothing_is_taken_where_that_would_not_be_enough() -> None:
    """What the two others hold together is more than a half of the cache, but neither holds as much as it would."""
    line = Line(num_blocks=100)
    for share in ("a", "b"):
        line.ask(share, 160, 5)
        line.ask(share, 8, 5)
    line.step()
    line.ask("large", 300, 5)
    line.step()
    assert line.scheduler.preemptions == 0


# ---- weights


@pytest.mark.parametrize("sizes", [(100, 40), (10, 100), (300, 1)])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 2.0), (0.5, 2.0)])
def test_tokens_go_by_weight(weights: tuple[float, float], sizes: tuple[int, int]) -> None:
    line = Line(max_num_seqs=12)
    prompt, output = sizes
    for _ in range(400):
        for share, weight in zip("ab", weights, strict=True):
            line.ask(share, prompt, output, weight=weight)
    line.run(200)
    before = line.service.copy()
    line.run(1000)
    a, b = (line.service[share] - before[share] for share in "ab")
    assert b / a == pytest.approx(weights[1] / weights[0], rel=0.05)


def test_short_requests_get_as_many_tokens_as_long_ones() -> None:
    line = Line(max_num_seqs=12)
    for _ in range(2000):
        line.ask("short", 8, 4)
        line.ask("long", 200, 100)
    line.run(1000)
    assert line.service["short"] / line.service["long"] == pytest.approx(1, rel=0.05)


def test_seats_go_by_weight_where_one_came_late() -> None:
    line = Line(max_num_seqs=12)
    for _ in range(40):
        line.ask("first", 5, 1000)
    line.run(20)
    for _ in range(40):
        line.ask("late", 5, 1000, weight=2.0)
    line.run(20)
    assert line.running == {"first": 4, "late": 8}
    preemptions = line.scheduler.preemptions
    line.run(300)
    assert line.scheduler.preemptions == preemptions  # nothing is given back and forth


def test_what_was_not_asked_for_is_saved_for_a_few_steps_only() -> None:
    line = Line()
    greedy(line, requests=500, prompt=50, output=10)
    line.ask("idle", 5, 5)
    line.run(500)
    greedy(line, "idle", requests=500, prompt=50, output=10)
    before = line.service.copy()
    line.run(400)
    ahead = (line.service["idle"] - before["idle"]) - (line.service["greedy"] - before["greedy"])
    assert 0 <= ahead <= (SAVED_STEPS + 2) * BUDGET


def test_each_of_many_is_ahead_by_no_more() -> None:
    line = Line(max_num_seqs=16, num_blocks=20_000)
    greedy(line, requests=500, prompt=50, output=10)
    line.run(500)
    for number in range(10):
        line.ask(f"little-{number}", 3000, 1)
    before = line.service.copy()
    line.run(2000)
    for number in range(10):
        ahead = line.service[f"little-{number}"] - (line.service["greedy"] - before["greedy"])
        assert ahead <= (SAVED_STEPS + 2) * BUDGET


# ---- nobody loses


@pytest.mark.parametrize("seed", range(8))
def test_every_request_ends_however_scarce_blocks_are(seed: int) -> None:
    chance = random.Random(seed)
    line = Line(max_num_seqs=5, num_blocks=40)
    asked = []
    for _ in range(60):
        share, priority = chance.choice("abc"), chance.choice((0, 0, 0, 5))
        prompt, output = chance.randint(1, 90), chance.randint(1, 60)
        asked.append(line.ask(share, prompt, output, priority=priority, weight={"a": 1.0, "b": 3.0, "c": 1.0}[share]))
        line.run(chance.randint(0, 5))
    line.run(20_000)
    assert sorted(line.ended) == sorted(asked)
    assert line.scheduler.pool.free == line.scheduler.pool.num_blocks


def test_no_step_is_left_unfilled_while_one_share_waits() -> None:
    line = Line()
    for _ in range(200):
        line.ask("a", 40, 1)
    for _ in range(200):
        line.step()
        assert sum(length for _, length in line.lengths[-1]) == BUDGET


def test_steps_are_short_while_several_shares_ask_and_long_again_some_time_later() -> None:
    line = Line(max_num_seqs=4)
    greedy(line, requests=600, prompt=200, output=1)
    line.run(20)
    line.ask("little", 20, 2)
    line.step()
    assert line.lengths[-1][0] == ("little-600", 20) and len(line.lengths[-1]) == 1
    lengths = []
    for _ in range(RECENT_STEPS + 10):
        line.step()
        lengths.append(sum(length for name, length in line.lengths[-1] if name.startswith("greedy")))
    assert lengths[1 : RECENT_STEPS - 1] == [BUDGET // SHORT] * (RECENT_STEPS - 2)
    assert lengths[-1] == BUDGET


def test_one_share_alone_is_served_as_if_there_were_none() -> None:
    def lengths(share: str | None) -> list[list[tuple[str, int]]]:
        chance = random.Random(3)
        line = Line(max_num_seqs=5, num_blocks=60)
        for _ in range(50):
            line.ask(share, chance.randint(1, 90), chance.randint(1, 60), priority=chance.choice((0, 0, 7)))
            line.run(chance.randint(0, 5))
        line.run(3000)
        return [[(name.partition("-")[2], length) for name, length in step] for step in line.lengths]

    assert lengths("only") == lengths(None)


def test_a_priority_goes_before_all_shares() -> None:
    line = Line(max_num_seqs=1)
    line.ask("a", 5, 20)
    line.step()
    late = line.ask("b", 5, 2, priority=3)
    urgent = [line.ask("a", 5, 2) for _ in range(3)]
    line.run(200)
    assert [name for name in line.ended if name in (*urgent, late)] == [*urgent, late]
