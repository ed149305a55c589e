"""An engine of a library: what is the same whatever the library."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from engines.capabilities import AdapterSupport, Capabilities
from engines.engine import Engine
from engines.errors import EngineFailure, EngineUnavailable, InvalidRequest, UnsupportedModel, UnsupportedParameter
from engines.library.core import Load
from engines.library.engine import PAUSE_SECONDS, LibraryEngine
from engines.types import (
    EngineState,
    EngineStats,
    FinishReason,
    GenerationRequest,
    PoolingRequest,
    TokenOutput,
)
from tests.contract.engines import answer, collect, request
from tests.until import async_until

SLOTS = 2
SEATS = 4
FOLDER = Path("nowhere")


class Library:
    """One that computes a token whenever it is let: the prompt again, for ever."""

    def __init__(self) -> None:
        self.let = asyncio.Semaphore(1000)
        self.inside = 0
        """Outputs that it is computing."""
        self.adapters: list[str] = []
        """Names of those in its slots."""
        self.named: list[str | None] = []
        """What each request computed with."""
        self.died: str | None = None
        self.broken: Exception | None = None
        self.asleep = False
        self.slots = self
        self.capabilities = Capabilities(
            max_model_len=1000,
            vocab_size=256,
            sleep=True,
            embeddings=True,
            adapters=AdapterSupport(max_rank=8, linears={}, max_pinned=SLOTS - 1),
        )

    async def start(self) -> Capabilities:
        if self.broken is not None:
            raise self.broken
        return self.capabilities

    async def stop(self) -> None:
        pass

    def death(self) -> str | None:
        return self.died

    def stats(self, load: Load) -> EngineStats:
        return EngineStats(
            running=load.outputs,
            waiting=load.held_back,
            waiting_for=load.waiting_for,
            prefix_cache_queries=load.prompt_tokens,
            prefix_cache_hits=load.cached_tokens,
        )

    def check(self, request: GenerationRequest) -> None:
        if not request.prompt_ids:
            raise InvalidRequest("the prompt is empty")

    def ask(self, request: GenerationRequest) -> "Asked":
        return Asked(self, request)

    def check_pooling(self, request: PoolingRequest) -> None:
        if not request.prompt_ids:
            raise InvalidRequest("the prompt is empty")

    async def pool(self, request: PoolingRequest, adapter: str | None) -> list[float]:
        self.named.append(adapter)
        async with self.let:
            return [1.0]

    async def put(self, slot: int, name: str, folder: Path) -> None:
        self.adapters.append(name)

    async def take(self, slot: int, name: str) -> None:
        self.adapters.remove(name)

    async def sleep(self) -> None:
        self.asleep = True

    async def wake_up(self) -> None:
        self.asleep = False


class Asked:
    def __init__(self, library: Library, request: GenerationRequest) -> None:
        self.library = library
        self.request = request

    async def prepare(self) -> None:
        pass

    async def begin(self, adapter: str | None) -> None:
        self.library.named.append(adapter)

    async def compute(self, index: int, tell: Callable[[TokenOutput], None]) -> None:
        self.library.inside += 1
        most = self.request.sampling.max_new_tokens
        try:
            for count in range(1, most + 1):
                await self.library.let.acquire()
                if self.library.broken is not None:
                    raise self.library.broken
                tell(
                    TokenOutput(
                        index=index,
                        token_ids=(self.request.prompt_ids[count % len(self.request.prompt_ids)],),
                        finish_reason=FinishReason.LENGTH if count == most else None,
                        cached_tokens=3 if count == 1 else None,
                        queue_seconds=0.5 if count == 1 else None,
                    )
                )
        finally:
            self.library.inside -= 1


@pytest.fixture
def library() -> Library:
    return Library()


@pytest_asyncio.fixture
async def engine(library: Library) -> AsyncIterator[Engine]:
    engine = LibraryEngine(library, max_loras=SLOTS, max_num_seqs=SEATS)
    await engine.start()
    yield engine
    await engine.stop()


async def test_the_prompt_is_told_of_once_however_many_outputs_there_are(engine: Engine) -> None:
    outputs = await collect(engine, request("hello", n=3, max_new_tokens=2))
    assert len(outputs) == 6
    assert [output.cached_tokens for output in outputs] == [3, *[None] * 5]
    assert outputs[0].queue_seconds is not None and outputs[0].queue_seconds >= 0.5
    assert [output.queue_seconds for output in outputs[1:]] == [None] * 5
    stats = engine.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (5, 3)


async def test_an_output_is_ended_in_the_library_when_it_is_finished_and_all_when_the_reader_goes(
    engine: Engine, library: Library
) -> None:
    library.let = asyncio.Semaphore(2)
    async with aclosing(engine.generate(request("hello", "r", n=2, max_new_tokens=900))) as outputs:
        await anext(outputs)
        assert library.inside == 2
        engine.finish("r", 0)
        await async_until(lambda: library.inside == 1)
        assert engine.stats().running == 1
    assert library.inside == 0
    assert engine.stats().running == 0


async def test_an_error_of_the_library_is_the_requests_own(engine: Engine, library: Library) -> None:
    for error, kind in (
        (RuntimeError("of its own kind"), EngineFailure),
        (InvalidRequest("not so"), InvalidRequest),
    ):
        library.broken = error
        with pytest.raises(kind):
            await answer(engine, request("hello", n=2))
        assert library.inside == 0
    library.broken = None
    assert (await answer(engine, request("hello", max_new_tokens=4))).token_ids


async def test_what_the_library_has_checked_is_refused_before_it_is_asked(engine: Engine) -> None:
    with pytest.raises(InvalidRequest):
        await answer(engine, request(""))
    with pytest.raises(InvalidRequest):
        await engine.pool(PoolingRequest(request_id="e", prompt_ids=[]))


async def test_an_id_belongs_to_one_request_at_a_time(engine: Engine, library: Library) -> None:
    library.let = asyncio.Semaphore(1)
    async with aclosing(engine.generate(request("hello", "same", max_new_tokens=9))) as outputs:
        await anext(outputs)
        with pytest.raises(InvalidRequest, match="in use"):
            await answer(engine, request("hello", "same"))


async def test_a_name_in_the_library_is_never_given_twice(engine: Engine, library: Library) -> None:
    for _ in range(2):
        await engine.load_adapter("a@1", FOLDER)
        await answer(engine, request("hello", adapter="a@1"))
        await engine.unload_adapter("a@1")
    first, second = library.named
    assert first != second
    assert library.adapters == []


async def test_more_adapters_than_slots_take_turns(engine: Engine, library: Library) -> None:
    versions = [f"a@{i}" for i in range(5)]
    for version in versions:
        await engine.load_adapter(version, FOLDER)
    for version in versions * 2:
        await answer(engine, request("hello", adapter=version))
    assert [str(name).partition("#")[0] for name in library.named] == versions * 2
    assert len(library.adapters) == SLOTS == len(engine.stats().adapter_slots)


async def test_it_is_told_what_requests_wait_for(engine: Engine, library: Library) -> None:
    library.let = asyncio.Semaphore(0)
    versions = [f"a@{i}" for i in range(SLOTS + 1)]
    for version in versions:
        await engine.load_adapter(version, FOLDER)
    asked = [request("hello", f"r{version}", adapter=version) for version in versions]
    asked += [replace(request("hello", f"s{number}"), share="one") for number in range(2 * SEATS)]
    running = [asyncio.create_task(answer(engine, one)) for one in asked]
    await async_until(lambda: engine.stats().waiting_for == {"adapter": 1, "share": SEATS - 1})
    for _ in range(10_000):
        library.let.release()
    await asyncio.gather(*running)
    assert engine.stats().waiting_for == {}


async def test_an_unloaded_adapter_takes_its_requests_with_it(engine: Engine, library: Library) -> None:
    library.let = asyncio.Semaphore(1)
    await engine.load_adapter("a@1", FOLDER)
    async with aclosing(engine.generate(request("hello", adapter="a@1", max_new_tokens=900))) as outputs:
        await anext(outputs)
        embedding = asyncio.create_task(engine.pool(PoolingRequest(request_id="e", prompt_ids=[1], adapter="a@1")))
        await async_until(lambda: len(library.named) == 2)
        await engine.unload_adapter("a@1")
        for ended in (anext(outputs), embedding):
            with pytest.raises(EngineFailure, match="unloaded"):
                await ended
    assert library.adapters == []


async def test_a_library_without_adapters_is_asked_for_none(library: Library) -> None:
    library.capabilities = Capabilities(max_model_len=9, vocab_size=256)
    engine = LibraryEngine(library, max_loras=0, max_num_seqs=SEATS)
    await engine.start()
    with pytest.raises(UnsupportedParameter):
        await engine.load_adapter("a@1", FOLDER)
    with pytest.raises(UnsupportedParameter):
        await engine.sleep()
    with pytest.raises(UnsupportedParameter):
        await engine.wake_up()


async def test_prompts_whose_numbers_are_to_come_count_as_work_and_it_sleeps_after_them(
    engine: Engine, library: Library
) -> None:
    library.let = asyncio.Semaphore(0)
    pooled = asyncio.create_task(engine.pool(PoolingRequest(request_id="e", prompt_ids=[1])))
    await async_until(lambda: library.named)
    assert engine.stats().running == 1
    sleeping = asyncio.create_task(engine.sleep())
    await asyncio.sleep(2 * PAUSE_SECONDS)
    assert not library.asleep
    library.let.release()
    await sleeping
    assert library.asleep and pooled.done()
    assert engine.stats().running == 0


async def test_it_sleeps_once_what_runs_has_ended(engine: Engine, library: Library) -> None:
    library.let = asyncio.Semaphore(1)
    running = asyncio.create_task(answer(engine, request("hello", max_new_tokens=3)))
    await async_until(lambda: library.inside == 1)
    sleeping = asyncio.create_task(engine.sleep())
    await async_until(lambda: engine.health().state is EngineState.SLEEPING)
    with pytest.raises(EngineUnavailable):
        await answer(engine, request("hello", "other"))
    assert not library.asleep
    library.let.release()
    library.let.release()
    assert len((await running).token_ids) == 3
    await sleeping
    assert library.asleep
    await engine.wake_up()
    library.let.release()
    assert (await answer(engine, request("hello", max_new_tokens=1))).token_ids


async def test_a_death_is_seen_and_nothing_is_taken_any_more(engine: Engine, library: Library) -> None:
    library.died = "out of memory"
    assert engine.health().state is EngineState.FAILED
    assert engine.health().detail == "out of memory"
    with pytest.raises(EngineUnavailable, match="failed"):
        await answer(engine, request("hello"))


async def test_a_start_that_fails_says_so_and_requests_end_with_the_engine(library: Library) -> None:
    engine = LibraryEngine(library, max_loras=0, max_num_seqs=SEATS)
    with pytest.raises(EngineUnavailable):
        engine.capabilities()
    library.broken = UnsupportedModel("not this one")
    with pytest.raises(UnsupportedModel):
        await engine.start()
    assert engine.health().state is EngineState.FAILED
    library.broken = None
    await engine.start()
    library.let = asyncio.Semaphore(0)
    running = asyncio.create_task(answer(engine, request("hello")))
    await async_until(lambda: library.inside == 1)
    await engine.stop()
    with pytest.raises(EngineUnavailable):
        await running


async def test_requests_of_a_share_wait_in_front_of_the_library_and_may_end_there(
    engine: Engine, library: Library
) -> None:
    library.let = asyncio.Semaphore(0)
    await engine.load_adapter("a@1", FOLDER)
    several = [replace(request(request_id=f"r{i}", adapter="a@1" if i == 19 else None), share="a") for i in range(20)]
    tasks = [asyncio.create_task(collect(engine, one)) for one in several]
    await async_until(lambda: library.inside == SEATS + 1 and engine.stats().waiting == 15)
    await engine.unload_adapter("a@1")
    with pytest.raises(EngineFailure):
        await tasks.pop()
    tasks.pop().cancel()
    for _ in range(1000):
        library.let.release()
    assert [len(outputs) for outputs in await asyncio.gather(*tasks)] == [8] * 18
