"""Processes of vLLM are killed, and so is the server before them."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engines.errors import EngineFailure
from engines.types import EngineState
from engines.vllm.client import VllmEngine
from engines.vllm.config import VllmConfig
from tests.adapter_folders import lora_tensors, write_adapter
from tests.contract.engines import answer, request
from tests.engines.vllm.tiny import TINY, needs_vllm, save_for_vllm
from tests.faults.server import begun
from tests.processes import ended, family, whose_commands_have
from tests.until import async_until

pytestmark = [needs_vllm, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_for_vllm(tmp_path_factory.mktemp("model"), positions=4096)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(VllmConfig(**TINY, model=str(model)), max_num_queued_reqs=8)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_core_that_is_killed_or_stopped_while_idle_is_noticed_and_another_takes_over_with_the_adapters(
    engine: VllmEngine, tmp_path: Path, how: signal.Signals
) -> None:
    tensors = lora_tensors(support=engine.capabilities().adapters)
    await engine.load_adapter("a@1", write_adapter(tmp_path / "a", tensors=tensors))
    asked = [request(ignore_eos=True), request(ignore_eos=True, adapter="a@1")]
    before = [await answer(engine, one) for one in asked]
    processes = family(engine._life.process.pid)
    next(whose_commands_have("EngineCore", processes)).send_signal(how)
    await async_until(lambda: engine.health().state is EngineState.RESTARTING)
    await async_until(lambda: engine.health().state is EngineState.READY)
    assert all(map(ended, processes))
    assert [await answer(engine, one) for one in asked] == before
    assert engine.stats().adapter_slots == ("a@1",)
    await engine.unload_adapter("a@1")


async def test_a_worker_that_is_killed_ends_what_runs_and_leaves_nothing_behind(engine: VllmEngine) -> None:
    processes = family(engine._life.process.pid)
    endless = [request("x", f"r{i}", max_new_tokens=4000, ignore_eos=True) for i in range(3)]
    running = [asyncio.create_task(answer(engine, one)) for one in endless]
    await async_until(lambda: engine.stats().running == 3)
    next(whose_commands_have("Worker", processes)).kill()
    for result in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(result, EngineFailure)
    await async_until(lambda: engine.health().state is EngineState.RESTARTING)
    await async_until(lambda: all(map(ended, processes)))
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)
    await engine.stop()  # while it starts again
    assert engine.health().state is EngineState.STOPPED


async def test_no_process_outlives_a_server_that_was_killed_while_vllm_started(model: Path) -> None:
    server = await begun("vllm", str(model))
    pid = int(await server.stdout.readline())
    await async_until(lambda: len(family(pid)) > 1)
    processes = family(pid)
    server.send_signal(signal.SIGKILL)
    await server.wait()
    await async_until(lambda: all(map(ended, processes)))
