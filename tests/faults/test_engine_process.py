"""The engine's process is killed, frozen, overloaded, orphaned; the server's side of it keeps its word."""

import asyncio
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from transformers import AutoModelForSequenceClassification

from engines.adapters.spec import WEIGHTS
from engines.errors import (
    Conflict,
    EngineFailure,
    EngineUnavailable,
    InvalidAdapter,
    InvalidRequest,
    QueueFull,
    UnsupportedModel,
)
from engines.pt.client import PtEngine
from engines.pt.config import PtConfig
from engines.types import EngineState, GenerationRequest, PoolingRequest
from tests.adapter_folders import lora_tensors, write_adapter
from tests.contract.engines import answer, request
from tests.engines.pt.tiny import CONFIGS, save
from tests.faults.server import begun
from tests.processes import ended
from tests.until import async_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

POSITIONS = 8192
"""So many that no output reaches its end while a test does something to it, however busy the machine."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PtConfig:
    llama = CONFIGS["llama"]()
    llama.max_position_embeddings = POSITIONS
    folder = save(llama, tmp_path_factory.mktemp("model"), tokenizer=True)
    return PtConfig(
        model=str(folder), dtype="float32", device_map="cpu", threads=1, block_size=8, max_num_seqs=2, seed=1
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(config: PtConfig) -> AsyncIterator[PtEngine]:
    engine = PtEngine(config, max_num_queued_reqs=1)
    await engine.start()
    yield engine
    await engine.stop()


def process_of(engine: PtEngine) -> psutil.Process:
    return psutil.Process(engine._life.process.pid)


def long(request_id: str, text: str = "hello") -> GenerationRequest:
    return request(text, request_id, max_new_tokens=100, ignore_eos=True)


async def started(engine: PtEngine, *requests: GenerationRequest) -> list[asyncio.Task[Any]]:
    """Tasks that collect the answers; each request has reached the engine's side of the queue."""
    tasks = [asyncio.create_task(answer(engine, one)) for one in requests]
    await async_until(lambda: all(one.request_id in engine._pending for one in requests))
    return tasks


async def test_a_full_queue_turns_requests_away_and_takes_them_again_later(engine: PtEngine) -> None:
    process_of(engine).suspend()
    tasks = await started(engine, long("a"), long("b"), long("c"))
    with pytest.raises(QueueFull):
        await answer(engine, long("d"))
    with pytest.raises(QueueFull):
        await engine.pool(PoolingRequest(request_id="e", prompt_ids=[65]))
    process_of(engine).resume()
    assert [len(one.token_ids) for one in await asyncio.gather(*tasks)] == [100] * 3
    assert len((await answer(engine, long("d"))).token_ids) == 100


async def test_one_share_that_fills_the_queue_leaves_the_others_their_part(engine: PtEngine) -> None:
    def of(share: str, request_id: str) -> GenerationRequest:
        return replace(long(request_id), share=share)

    process_of(engine).suspend()
    tasks = await started(engine, *(of("greedy", name) for name in ("a", "b", "c")))
    with pytest.raises(QueueFull):
        await answer(engine, of("greedy", "d"))
    tasks += await started(engine, of("little", "e"))
    with pytest.raises(QueueFull):
        await answer(engine, of("greedy", "f"))
    process_of(engine).resume()
    assert [len(one.token_ids) for one in await asyncio.gather(*tasks)] == [100] * 4


async def test_a_slow_reader_who_had_enough_gets_nothing_of_what_was_made_meanwhile(engine: PtEngine) -> None:
    seen = 0
    async for _ in engine.generate(long("slow")):
        seen += 1
        await async_until(lambda: engine._pending["slow"].open == set())  # type: ignore[union-attr]  # the engine is done with it
        engine.finish("slow", 0)
    assert seen == 1
    assert len((await answer(engine, long("next"))).token_ids) == 100


async def test_an_id_cannot_be_used_twice_at_once(engine: PtEngine) -> None:
    process_of(engine).suspend()
    [task] = await started(engine, long("same"))
    with pytest.raises(InvalidRequest, match="in use"):
        await answer(engine, long("same", "other"))
    process_of(engine).resume()
    assert len((await task).token_ids) == 100


async def test_a_number_beyond_64_bits_is_the_requests_fault(engine: PtEngine) -> None:
    one = request()
    with pytest.raises(InvalidRequest):
        await answer(engine, replace(one, sampling=replace(one.sampling, top_k=2**70)))
    assert (await answer(engine, one)).token_ids


async def test_a_cancelled_client_frees_the_blocks(engine: PtEngine) -> None:
    [task] = await started(engine, request("hello", "gone", max_new_tokens=POSITIONS - 5, ignore_eos=True))
    await async_until(lambda: engine.stats().running == 1)
    assert engine.stats().kv_cache_usage > 0
    task.cancel()
    await async_until(lambda: engine.stats().running == 0)
    assert engine.stats().kv_cache_usage == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_killed_process_fails_what_ran_and_another_takes_over(engine: PtEngine, how: signal.Signals) -> None:
    expected = (await answer(engine, request("tell me a longer story"))).token_ids
    await answer(engine, request("tell me a longer story"))  # the second time with prefix hits
    before = engine.stats()
    assert before.prefix_cache_hits > 0
    killed = process_of(engine)
    killed.suspend()
    tasks = await started(engine, long("a"), long("b"))
    killed.send_signal(how)
    killed.resume()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, EngineFailure)
    assert engine.health().state is EngineState.RESTARTING
    assert f"signal {how:d}" in engine.health().detail
    engine.finish("a", 0)
    with pytest.raises(EngineUnavailable):
        await answer(engine, request())
    await async_until(lambda: engine.health().state is EngineState.READY)
    assert not killed.is_running()
    assert engine.stats().prefix_cache_hits >= before.prefix_cache_hits
    assert (await answer(engine, request("tell me a longer story"))).token_ids == expected
    assert engine.stats().prefix_cache_queries > before.prefix_cache_queries
    assert engine.stats().prefix_cache_hits == before.prefix_cache_hits


async def test_an_output_that_was_finished_is_read_to_its_end_after_the_process_died(engine: PtEngine) -> None:
    async with aclosing(engine.generate(long("a"))) as outputs:
        tokens = [*(await anext(outputs)).token_ids]
        await async_until(lambda: engine.stats().running == 0)
        process_of(engine).kill()
        await async_until(lambda: engine.health().state is EngineState.RESTARTING)
        async for output in outputs:
            tokens += output.token_ids
    assert len(tokens) == 100
    await async_until(lambda: engine.health().state is EngineState.READY)


async def test_classes_that_were_asked_for_of_a_process_that_died_fail_and_the_next_one_has_them(
    tmp_path: Path,
) -> None:
    folder = save(CONFIGS["llama"](), tmp_path, tokenizer=True, kind=AutoModelForSequenceClassification)
    config = PtConfig(model=str(folder), dtype="float32", device_map="cpu", threads=1, block_size=8)
    engine = PtEngine(config, max_num_queued_reqs=1)
    await engine.start()
    try:
        asked = PoolingRequest(request_id="c", prompt_ids=[65, 66], task="classify")
        expected = await engine.pool(asked)
        killed = process_of(engine)
        killed.suspend()
        pending = asyncio.create_task(engine.pool(asked))
        await async_until(lambda: "c" in engine._pending)
        killed.kill()
        with pytest.raises(EngineFailure):
            await pending
        await async_until(lambda: engine.health().state is EngineState.READY)
        assert await engine.pool(asked) == pytest.approx(expected, abs=1e-6)
    finally:
        await engine.stop()


@pytest.fixture
def adapter_folder(engine: PtEngine, tmp_path: Path) -> Callable[[int], Path]:
    """The folder of an adapter of this model; another seed makes another one."""

    def get(seed: int) -> Path:
        return write_adapter(
            tmp_path / str(seed), tensors=lora_tensors(seed=seed, support=engine.capabilities().adapters)
        )

    return get


async def test_adapters_are_back_after_the_process_was_killed(
    engine: PtEngine, adapter_folder: Callable[[int], Path]
) -> None:
    """Those that were there; not one that was being loaded, nor one that is unloaded before the next process is
    there."""
    for seed, version in enumerate(("kept", "gone", "unloaded")):
        await engine.load_adapter(version, adapter_folder(seed))
    expected = (await answer(engine, request(adapter="kept"))).token_ids
    assert expected != (await answer(engine, request())).token_ids
    loads = engine.stats().adapter_loads["kept"]
    killed = process_of(engine)
    killed.suspend()
    loading = asyncio.create_task(engine.load_adapter("loading", adapter_folder(3)))
    again = asyncio.create_task(engine.load_adapter("kept", adapter_folder(0)))
    [running] = await started(engine, request(adapter="kept"))
    killed.kill()
    for result in await asyncio.gather(loading, again, running, return_exceptions=True):
        assert isinstance(result, EngineFailure)
    with pytest.raises(EngineUnavailable):
        await engine.load_adapter("loading", adapter_folder(3))
    await engine.unload_adapter("unloaded")
    shutil.rmtree(adapter_folder(1))
    await async_until(lambda: engine.health().state is EngineState.READY)
    assert (await answer(engine, request(adapter="kept"))).token_ids == expected
    assert engine.stats().adapter_loads["kept"] == loads + 1
    for lost, reason in (("gone", "can be read"), ("unloaded", "does not hold"), ("loading", "does not hold")):
        with pytest.raises(EngineFailure, match=reason):
            await answer(engine, request(adapter=lost))
    assert (await answer(engine, request())).token_ids
    for version in ("kept", "gone"):
        await engine.unload_adapter(version)


async def test_a_load_that_fails_leaves_the_engine_well(
    engine: PtEngine, adapter_folder: Callable[[int], Path]
) -> None:
    folder = adapter_folder(0)
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[:-10])
    with pytest.raises(InvalidAdapter):
        await engine.load_adapter("a", folder)
    with pytest.raises(EngineFailure, match="does not hold"):
        await answer(engine, request(adapter="a"))
    (folder / WEIGHTS).write_bytes(weights)
    await engine.load_adapter("a", folder)
    assert (await answer(engine, request(adapter="a"))).token_ids
    (folder / WEIGHTS).write_bytes(weights[:-10])
    await engine.load_adapter("a", folder)  # it is there already
    assert (await answer(engine, request(adapter="a"))).token_ids
    await engine.unload_adapter("a")


async def test_a_load_that_is_given_up_leaves_nothing_behind(
    engine: PtEngine, adapter_folder: Callable[[int], Path]
) -> None:
    process_of(engine).suspend()
    alone, *several = [
        asyncio.create_task(engine.load_adapter(version, adapter_folder(0)))
        for version in ("alone", "wanted", "wanted")
    ]
    await asyncio.sleep(0)
    alone.cancel()
    several[0].cancel()
    process_of(engine).resume()
    results = await asyncio.gather(alone, *several, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, asyncio.CancelledError, type(None)]
    assert (await answer(engine, request(adapter="wanted"))).token_ids
    with pytest.raises(EngineFailure, match="does not hold"):
        await answer(engine, request(adapter="alone"))
    assert engine._loading == {}
    await engine.unload_adapter("wanted")


async def test_unloading_what_is_being_loaded_ends_the_load(
    engine: PtEngine, adapter_folder: Callable[[int], Path]
) -> None:
    process_of(engine).suspend()
    loading = asyncio.create_task(engine.load_adapter("a", adapter_folder(0)))
    await asyncio.sleep(0)
    await engine.unload_adapter("a")
    with pytest.raises(Conflict):
        await loading
    process_of(engine).resume()
    with pytest.raises(EngineFailure, match="does not hold"):
        await answer(engine, request(adapter="a"))


async def test_a_terminal_signal_to_the_group_is_not_for_the_engine(engine: PtEngine) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        process_of(engine).send_signal(number)
    assert (await answer(engine, request())).token_ids
    assert engine.health().state is EngineState.READY


async def test_stopping_ends_the_process_and_what_it_ran(config: PtConfig) -> None:
    engine = PtEngine(config, max_num_queued_reqs=1)
    await engine.start()
    process = process_of(engine)
    endless = request("hello", "a", max_new_tokens=POSITIONS - 5, ignore_eos=True)
    async with aclosing(engine.generate(endless)) as outputs:
        await anext(outputs)
        await engine.stop()
        with pytest.raises(EngineUnavailable):
            [output async for output in outputs]
    assert not process.is_running()


async def test_a_process_that_dies_while_it_starts_is_reported(config: PtConfig) -> None:
    engine = PtEngine(config, max_num_queued_reqs=1)
    starting = asyncio.create_task(engine.start())
    await async_until(lambda: engine._life is not None)
    engine._life.process.kill()
    with pytest.raises(EngineFailure, match="signal 9 while it started"):
        await starting
    assert engine.health().state is EngineState.FAILED
    await engine.stop()


async def test_stopped_while_it_starts_nothing_is_left(config: PtConfig) -> None:
    engine = PtEngine(config, max_num_queued_reqs=1)
    starting = asyncio.create_task(engine.start())
    await async_until(lambda: engine._life is not None and engine._life._writer is not None)
    process = process_of(engine)
    await engine.stop()
    with pytest.raises((EngineFailure, EngineUnavailable)):
        await starting
    assert not process.is_running()
    assert engine.health().state is EngineState.STOPPED


async def test_a_process_begun_ahead_is_the_one_that_starts(config: PtConfig) -> None:
    engine = PtEngine(config, max_num_queued_reqs=1)
    engine.prepare()
    ahead = process_of(engine)
    await engine.start()
    assert process_of(engine) == ahead
    assert (await answer(engine, request())).token_ids
    await engine.stop()


async def test_a_process_begun_ahead_loads_the_model_before_anybody_waits_for_it(config: PtConfig) -> None:
    engine = PtEngine(config, max_num_queued_reqs=1)
    engine.prepare()
    told, _, _ = await asyncio.to_thread(select.select, [engine._life._socket], [], [], 60)
    assert told
    await engine.stop()


async def test_a_process_begun_ahead_that_is_never_needed_ends_without_loading_to_the_end(config: PtConfig) -> None:
    engine = PtEngine(config, max_num_queued_reqs=1)
    engine.prepare()
    ahead = engine._life.process
    await engine.stop()
    assert ahead.poll() == -signal.SIGKILL


BEGINS_ONE_AND_ENDS = """
from engines.process.client import ProcessEngine
from engines.process.life import Program

program = Program(command=("sleep", "600"), environment={}, config={}, max_num_seqs=1)
engine = ProcessEngine(program, max_num_queued_reqs=1)
engine.prepare()
print(engine._life.process.pid)
"""


async def test_a_process_begun_ahead_ends_with_a_server_that_ends_before_it_needs_it() -> None:
    server = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", BEGINS_ONE_AND_ENDS], capture_output=True, text=True, check=True
    )
    number = int(server.stdout)
    await async_until(lambda: not psutil.pid_exists(number) or ended(psutil.Process(number)))


async def test_a_model_that_cannot_be_run_is_refused_with_the_reason(config: PtConfig, tmp_path: Path) -> None:
    engine = PtEngine(replace(config, model=str(tmp_path)), max_num_queued_reqs=1)
    with pytest.raises(UnsupportedModel, match="cannot be loaded") as refused:
        await engine.start()
    assert refused.value.param == "model"
    assert engine.health().state is EngineState.FAILED
    assert engine._life.process.poll() is not None
    await engine.stop()


async def test_the_process_dies_with_its_server(config: PtConfig) -> None:
    server = await begun("pt", config.model)
    child = psutil.Process(int(await server.stdout.readline()))
    child.suspend()  # so that it cannot notice by itself
    server.kill()
    await server.wait()
    await async_until(lambda: ended(child))
