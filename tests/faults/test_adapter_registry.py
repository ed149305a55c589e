"""Adapters on our own engine, whose process is killed: what they are and what they answer outlives it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from engines.adapters.registry import AdapterRegistry
from engines.errors import EngineFailure, EngineUnavailable
from engines.pt.client import PtEngine
from engines.pt.config import PtConfig
from engines.types import EngineState, GenerationRequest, Sampling
from tests.adapter_folders import lora_tensors, write_adapter
from tests.engines.pt.tiny import CONFIGS, save
from tests.until import async_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROJECTIONS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(CONFIGS["llama"](), tmp_path_factory.mktemp("model"), tokenizer=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[PtEngine]:
    config = PtConfig(model=str(model), dtype="float32", device_map="cpu", threads=1, max_num_seqs=8)
    engine = PtEngine(config, max_num_queued_reqs=8)
    await engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def registry(engine: PtEngine, model: Path, tmp_path: Path) -> AsyncIterator[AdapterRegistry]:
    registry = AdapterRegistry(engine, base_name="base", model=str(model), state_dir=tmp_path / "state")
    await registry.restore()
    yield registry
    for adapter in registry.adapters():
        await registry.unload(adapter.name)
    await registry.close()


def trained(engine: PtEngine, folder: Path, seed: int) -> Path:
    support = engine.capabilities().adapters
    assert support is not None
    tensors = lora_tensors(PROJECTIONS, seed=seed, support=support)
    return write_adapter(folder, tensors=tensors, base_model_name_or_path=None)


async def ask(engine: PtEngine, registry: AdapterRegistry, model: str) -> list[int]:
    lease = await registry.lease(model)
    try:
        request = GenerationRequest(
            request_id=f"{id(lease)}",
            prompt_ids=[*range(10, 30)],
            sampling=Sampling(max_new_tokens=12, temperature=0.0, ignore_eos=True),
            adapter=lease.version,
        )
        return [token async for output in engine.generate(request) for token in output.token_ids]
    finally:
        lease.release()


async def kill(engine: PtEngine) -> None:
    """Return once it is being started again."""
    assert engine._life is not None
    psutil.Process(engine._life.process.pid).kill()
    await async_until(lambda: engine.health().state is EngineState.RESTARTING)


async def test_adapters_answer_as_before_after_the_engine_was_killed(
    engine: PtEngine, registry: AdapterRegistry, tmp_path: Path
) -> None:
    models = ("base", "a", "b")
    for seed, name in enumerate(models[1:]):
        await registry.load(name, trained(engine, tmp_path / name, seed))
    alone = [await ask(engine, registry, name) for name in models]
    assert len({*map(tuple, alone)}) == 3
    for _ in range(2):
        await kill(engine)
        await async_until(lambda: engine.health().state is EngineState.READY)
        assert await asyncio.gather(*(ask(engine, registry, name) for name in models)) == alone


async def test_what_is_done_while_the_engine_is_down_holds_once_it_is_back(
    engine: PtEngine, registry: AdapterRegistry, tmp_path: Path
) -> None:
    for seed, name in enumerate("ab"):
        await registry.load(name, trained(engine, tmp_path / name, seed))
    answers = {name: await ask(engine, registry, name) for name in "ab"}
    await kill(engine)
    with pytest.raises(EngineUnavailable):
        await registry.load("c", trained(engine, tmp_path / "c", 2))
    await registry.alias("prod", "b")
    await registry.unload("a")
    await async_until(lambda: engine.health().state is EngineState.READY)
    assert await ask(engine, registry, "prod") == answers["b"]
    assert [adapter.name for adapter in registry.adapters()] == ["b"]
    await registry.load("a", trained(engine, tmp_path / "c", 2))
    assert await ask(engine, registry, "a") != answers["a"]
    await registry.unload("prod")


async def test_a_load_that_the_engine_dies_of_leaves_nothing_behind(
    engine: PtEngine, registry: AdapterRegistry, tmp_path: Path
) -> None:
    assert engine._life is not None
    process = psutil.Process(engine._life.process.pid)
    process.suspend()
    load = asyncio.create_task(registry.load("a", trained(engine, tmp_path / "a", 0)))
    await async_until(lambda: engine._loading)
    process.kill()
    with pytest.raises(EngineFailure):
        await load
    assert registry.adapters() == [] and not [*(tmp_path / "state" / "adapters" / "copies").iterdir()]
    await async_until(lambda: engine.health().state is EngineState.READY)
    await registry.load("a", trained(engine, tmp_path / "a", 0))
    assert await ask(engine, registry, "a") != await ask(engine, registry, "base")
