"""LMDeploy fails inside, or its process is killed: what runs ends with an error, and a new process has all adapters."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from engines.errors import EngineFailure
from engines.lmdeploy.client import LmdeployEngine
from engines.types import EngineState, GenerationRequest
from tests.contract.engines import answer
from tests.engines.lmdeploy.engines import lmdeploy_on_cpu
from tests.engines.lmdeploy.poisoned import POISON
from tests.engines.pt.adapters import save_adapter
from tests.engines.pt.driving import prompt, request
from tests.until import async_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 60
"""Seconds after which something has not happened."""


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(model, tmp_path_factory.mktemp("adapters") / "a")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path, adapter: Path) -> AsyncIterator[LmdeployEngine]:
    engine = lmdeploy_on_cpu(str(model), module="poisoned", max_num_seqs=4)
    await engine.start()
    await engine.load_adapter("a@1", adapter)
    yield engine
    await engine.stop()


def asked(request_id: str, **changes: Any) -> GenerationRequest:
    return request(prompt(20), request_id, **{"max_new_tokens": 1000, "ignore_eos": True} | changes)


def poison(engine: LmdeployEngine) -> asyncio.Task[Any]:
    return asyncio.create_task(answer(engine, request([5, POISON, 6], "poison")))


def kill(engine: LmdeployEngine) -> None:
    os.kill(engine._life.process.pid, signal.SIGKILL)


def stop(engine: LmdeployEngine) -> None:
    os.kill(engine._life.process.pid, signal.SIGSTOP)


@pytest.mark.parametrize("end", [poison, kill, stop])
async def test_a_death_ends_what_runs_and_another_process_takes_over(
    engine: LmdeployEngine, end: Callable[[LmdeployEngine], asyncio.Task[Any] | None]
) -> None:
    before = [
        (await answer(engine, asked("r", max_new_tokens=9, adapter=adapter))).token_ids for adapter in (None, "a@1")
    ]
    process = psutil.Process(engine._life.process.pid)
    async with aclosing(engine.generate(asked("running"))) as outputs:
        await anext(outputs)
        others = [asyncio.create_task(answer(engine, asked(f"w{i}", adapter="a@1"))) for i in range(2)]
        dying = end(engine)
        with pytest.raises(EngineFailure):
            async with asyncio.timeout(PATIENCE):
                [output async for output in outputs]
        ends = await asyncio.gather(*others, *([dying] if dying else []), return_exceptions=True)
        assert all(isinstance(error, EngineFailure) for error in ends)
    await async_until(lambda: engine.health().state is EngineState.READY and engine._life.process.pid != process.pid)
    assert not process.is_running()
    after = [
        (await answer(engine, asked("r", max_new_tokens=9, adapter=adapter))).token_ids for adapter in (None, "a@1")
    ]
    assert after == before
    await async_until(lambda: engine.stats().running == engine.stats().waiting == 0)


async def test_cancelled_requests_give_everything_back(engine: LmdeployEngine) -> None:
    """Four outputs run and five wait: for a handle of LMDeploy's, of which there are no more."""
    tasks = [asyncio.create_task(answer(engine, asked(f"r{i}", n=1 + i % 2))) for i in range(6)]
    await async_until(lambda: engine.stats().running == 4 and engine.stats().waiting == 5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await async_until(
        lambda: (engine.stats().running, engine.stats().waiting, engine.stats().kv_cache_usage) == (0, 0, 0)
    )
    ends = await asyncio.gather(*(answer(engine, asked(f"r{i}", max_new_tokens=5)) for i in range(6)))
    assert [len(end.token_ids) for end in ends] == [5] * 6


async def test_a_loop_that_rests_beside_its_work_is_woken_up(model: Path, engine: LmdeployEngine) -> None:
    asked_for = asked("r", max_new_tokens=25)
    forgetful = lmdeploy_on_cpu(str(model), module="forgetful")
    await forgetful.start()
    async with asyncio.timeout(PATIENCE):
        assert await answer(forgetful, asked_for) == await answer(engine, asked_for)
    await forgetful.stop()
