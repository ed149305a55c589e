"""Pools of threads: bounded, apart from one another, and told in the metrics."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from engines.errors import QueueFull
from engines.logs import about, current_http_request_id
from server.pools import Pool, PoolMetrics, Pools
from tests.until import async_until


class Held:
    """Calls that last until they are let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = threading.Event()

    def call(self) -> bool:
        self.begun += 1
        return self.go.wait(60)


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.go.set()


async def test_more_calls_than_workers_wait_and_what_is_beyond_is_refused_at_once(held: Held) -> None:
    pool = Pool("test", workers=2, waiting=1)
    calls = [asyncio.create_task(pool.run(held.call)) for _ in range(3)]
    await async_until(lambda: held.begun == 2)
    assert (pool.running, pool.waiting) == (2, 1)
    with pytest.raises(QueueFull, match="too much test work"):
        await pool.run(held.call)
    assert pool.refused == 1
    held.go.set()
    assert await asyncio.gather(*calls) == [True] * 3
    assert (pool.running, pool.waiting) == (0, 0)


async def test_a_call_that_nobody_waits_for_any_more_counts_until_it_has_ended(held: Held) -> None:
    pool = Pool("test", workers=1, waiting=0)
    call = asyncio.create_task(pool.run(held.call))
    await async_until(lambda: held.begun == 1)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    with pytest.raises(QueueFull):
        await pool.run(held.call)
    held.go.set()
    await async_until(lambda: pool.running == 0)
    assert await pool.run(lambda: 1) == 1


async def test_a_call_that_is_given_up_while_it_waits_makes_room(held: Held) -> None:
    pool = Pool("test", workers=1, waiting=1)
    running, waiting = (asyncio.create_task(pool.run(held.call)) for _ in range(2))
    await async_until(lambda: pool.waiting == 1)
    waiting.cancel()
    await async_until(lambda: pool.waiting == 0)
    held.go.set()
    assert await running


async def test_a_call_knows_the_request_that_it_is_for_and_raises_to_who_waits() -> None:
    pool = Pool("test", workers=1, waiting=0)
    with about("req-1"):
        assert await pool.run(current_http_request_id) == "req-1"
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 / 0)
    assert pool.running == 0


async def test_a_full_pool_leaves_the_others_free_and_the_metrics_say_so(held: Held) -> None:
    pools, registry = Pools(), CollectorRegistry()
    PoolMetrics(pools, registry, prefix="tuneserve:")
    most = 16 + 64
    calls = [asyncio.create_task(pools.grammar.run(held.call)) for _ in range(most)]
    results = asyncio.gather(*calls, return_exceptions=True)
    await async_until(lambda: pools.grammar.refused > 0)
    assert await pools.text.run(lambda: 1) == 1
    told = {"pool": "grammar"}
    assert registry.get_sample_value("tuneserve:pool_running", told) == pools.grammar.running > 0
    assert registry.get_sample_value("tuneserve:pool_waiting", told) == 16
    assert registry.get_sample_value("tuneserve:pool_refused_total", told) == pools.grammar.refused
    held.go.set()
    assert sum(isinstance(result, QueueFull) for result in await results) == pools.grammar.refused
