"""Requests in front of a library: how many it is given, and whose is the next."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from engines.library.gate import Gate
from engines.types import GenerationRequest, PoolingRequest, Sampling

pytestmark = pytest.mark.asyncio


def asked(
    share: str | None, *, n: int = 1, tokens: int = 10, priority: int = 0, weight: float = 1.0
) -> GenerationRequest:
    return GenerationRequest(
        request_id="r",
        prompt_ids=[1] * tokens,
        sampling=Sampling(max_new_tokens=5),
        n=n,
        share=share,
        priority=priority,
        weight=weight,
    )


class Line:
    """Requests that stand at a gate; those that the library has end when they are told to."""

    def __init__(self, max_num_seqs: int) -> None:
        self.gate = Gate(max_num_seqs)
        self.inside: list[tuple[GenerationRequest, asyncio.Event]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def add(self, *requests: GenerationRequest) -> None:
        self.tasks += [asyncio.create_task(self._pass(one)) for one in requests]

    async def _pass(self, request: GenerationRequest) -> None:
        async with self.gate.place(request) as place:
            await place.wait()
            entry = (request, asyncio.Event())
            self.inside.append(entry)
            await entry[1].wait()
            self.inside.remove(entry)

    async def settle(self) -> Counter[str | None]:
        """How many of each share are inside, once nothing moves."""
        for _ in range(10):
            await asyncio.sleep(0)
        return Counter(request.share for request, _ in self.inside)

    async def end_first(self) -> None:
        self.inside[0][1].set()
        await self.settle()


async def test_as_many_as_it_runs_and_a_few_more_are_given_to_it() -> None:
    line = Line(16)
    line.add(*(asked("a") for _ in range(40)))
    assert await line.settle() == {"a": 18}
    await line.end_first()
    assert await line.settle() == {"a": 18}


async def test_outputs_count_and_one_that_is_larger_than_all_goes_alone() -> None:
    line = Line(8)
    line.add(asked("a", n=8), asked("a", n=30), asked("a"))
    assert [request.n for request, _ in line.inside] == [] and await line.settle() == {"a": 1}
    await line.end_first()
    assert [request.n for request, _ in line.inside] == [30]
    await line.end_first()
    assert [request.n for request, _ in line.inside] == [1]


async def test_one_who_asks_little_is_next_however_many_another_has_there() -> None:
    line = Line(4)
    line.add(*(asked("greedy") for _ in range(50)))
    await line.settle()
    line.add(asked("little"))
    assert (await line.settle())["little"] == 0
    await line.end_first()
    assert (await line.settle())["little"] == 1


async def test_seats_are_given_out_by_weight_and_by_the_tokens_that_were_made() -> None:
    line = Line(7)
    for _ in range(200):
        line.add(asked("a", tokens=100), asked("b", tokens=100, weight=2.0), asked("c", tokens=100))
    served: Counter[str | None] = Counter()
    await line.settle()
    for _ in range(150):
        share = line.inside[0][0].share
        served[share] += 1
        line.gate.count_output(share, 50 if share == "c" else 0)  # costs as much as the prompt
        await line.end_first()
    assert served["b"] == pytest.approx(2 * served["a"], abs=4)
    assert served["a"] == pytest.approx(2 * served["c"], abs=4)


async def test_priorities_go_first_and_arrival_counts_within_a_share() -> None:
    line = Line(1)
    line.add(asked("a"), asked("a"))
    await line.settle()
    line.add(asked("a", priority=5), asked("b", priority=1), asked("a", tokens=3), asked("a", tokens=4))
    order = []
    for _ in range(4):
        await line.end_first()
        last, _ = line.inside[-1]
        order.append((last.share, last.priority, len(last.prompt_ids)))
    assert order == [("a", 0, 3), ("a", 0, 4), ("b", 1, 10), ("a", 5, 10)]


async def test_who_gives_up_in_line_or_inside_leaves_nothing_behind() -> None:
    line = Line(1)
    line.add(*(asked("a") for _ in range(6)))
    assert await line.settle() == {"a": 2}
    for number in (3, 4):
        line.tasks[number].cancel()
    assert await line.settle() == {"a": 2}
    while line.inside:
        await line.end_first()
    assert not line.gate._taken.total() and not line.gate._lines


async def test_requests_without_a_share_do_not_wait() -> None:
    line = Line(2)
    line.add(*(asked(None) for _ in range(30)))
    assert await line.settle() == {None: 30}


async def test_an_embedding_takes_one_seat() -> None:
    gate = Gate(8)
    async with AsyncExitStack() as stack:
        for _ in range(9):
            one = PoolingRequest(request_id="e", prompt_ids=[1], share="a")
            assert (await stack.enter_async_context(gate.place(one))).seated.is_set()
        more = await stack.enter_async_context(gate.place(asked("a")))
        assert not more.seated.is_set()
