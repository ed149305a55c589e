"""The process of a hosted engine: it dies, is killed, outlives its server for a moment, and requests fail alone."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from engines.echo import adapter_support
from engines.errors import EngineFailure, EngineUnavailable, InvalidRequest, UnsupportedModel
from engines.process.client import ProcessEngine
from engines.types import EngineState, GenerationRequest, PoolingRequest
from tests.adapter_folders import lora_tensors, write_adapter
from tests.contract.engines import answer, collect, request
from tests.faults.server import begun
from tests.hosted_echo import echo_in_its_process
from tests.processes import ended
from tests.until import async_until


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[ProcessEngine]:
    engine = echo_in_its_process(token_delay=0.01)
    await engine.start()
    yield engine
    await engine.stop()


def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "a", tensors=lora_tensors(seed=0, support=adapter_support(8)))


def endless(request_id: str) -> GenerationRequest:
    return request("hello", request_id, max_new_tokens=4000, ignore_eos=True)


async def test_a_killed_process_fails_what_it_ran_and_the_next_one_has_its_adapters(
    engine: ProcessEngine, tmp_path: Path
) -> None:
    await engine.load_adapter("a@1", folder(tmp_path))
    asked = request("hello", "b", adapter="a@1")
    before = await answer(engine, asked)
    async with aclosing(engine.generate(endless("a"))) as outputs:
        await anext(outputs)
        engine._life.process.kill()
        with pytest.raises(EngineFailure, match="signal 9"):
            [output async for output in outputs]
    with pytest.raises(EngineUnavailable):
        await answer(engine, request())
    await async_until(lambda: engine.health().state is EngineState.READY)
    assert await answer(engine, asked) == before


async def test_an_engine_that_died_inside_its_process_ends_that_too() -> None:
    engine = echo_in_its_process(token_delay=0.01, die_after=5)
    await engine.start()
    first = engine._life.process.pid
    with pytest.raises(EngineFailure):
        await answer(engine, endless("a"))
    await async_until(lambda: engine.health().state is EngineState.RESTARTING)
    await async_until(lambda: engine.health().state is EngineState.READY)
    assert engine._life.process.pid != first
    assert (await answer(engine, request("x", max_new_tokens=2))).token_ids
    await engine.stop()


async def test_an_engine_that_cannot_start_says_why() -> None:
    engine = echo_in_its_process(start_error="no such model here")
    with pytest.raises(UnsupportedModel, match="no such model here"):
        await engine.start()
    assert engine.health().state is EngineState.FAILED
    await engine.stop()


async def test_requests_that_are_wrong_fail_alone(engine: ProcessEngine) -> None:
    running = asyncio.create_task(answer(engine, request("x" * 200, "long", max_new_tokens=100)))
    await async_until(lambda: "long" in engine._pending)
    with pytest.raises(InvalidRequest):
        await answer(engine, request("", "empty"))
    with pytest.raises(EngineFailure, match="does not hold"):
        await engine.pool(PoolingRequest(request_id="e", prompt_ids=[65], adapter="never@heard"))
    assert len((await running).token_ids) == 100


async def test_a_hundred_requests_at_once_each_get_their_own_answer(engine: ProcessEngine) -> None:
    texts = [f"text number {i} " * (1 + i % 5) for i in range(50)]
    answers = await asyncio.gather(*(collect(engine, request(t, t, max_new_tokens=200)) for t in texts))
    for text, outputs in zip(texts, answers, strict=True):
        tokens = [token for output in outputs for token in output.token_ids if token < 256]
        assert bytes(tokens).decode() == text


async def test_an_aborted_request_leaves_its_id_free(engine: ProcessEngine) -> None:
    for _ in range(5):
        async with aclosing(engine.generate(endless("same"))) as outputs:
            await anext(outputs)
    assert (await answer(engine, request("hello", "same", max_new_tokens=3))).token_ids == [*b"hel"]
    await async_until(lambda: engine.stats().running == 0)


async def test_the_process_and_its_children_die_with_their_server() -> None:
    server = await begun("echo")
    hosted = psutil.Process(int(await server.stdout.readline()))
    for number in (signal.SIGINT, signal.SIGTERM):  # these are for the server
        hosted.send_signal(number)
    assert hosted.is_running()
    server.kill()
    await server.wait()
    await async_until(lambda: ended(hosted))
