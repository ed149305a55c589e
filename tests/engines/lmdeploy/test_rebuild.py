"""Where adapters cannot be written into the running model, it is built anew with them, and nobody notices but by
waiting."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from transformers import AutoModelForCausalLM

from engines.errors import EngineFailure
from engines.lmdeploy.client import LmdeployEngine
from tests.contract.engines import answer
from tests.engines.lmdeploy.engines import lmdeploy_on_cpu
from tests.engines.lmdeploy.test_parity import ADAPTERS, asked, check
from tests.engines.pt.adapters import save_adapter, with_peft
from tests.engines.pt.driving import Reference

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(model, root / name, seed=i, **ADAPTERS[name]) for i, name in enumerate(ADAPTERS)}


@pytest.fixture(scope="module")
def reference(model: Path, adapters: dict[str, Path]) -> dict[str | None, Reference]:
    plain = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").eval()
    return {None: Reference(plain)} | {name: with_peft(model, folder) for name, folder in adapters.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[LmdeployEngine]:
    engine = lmdeploy_on_cpu(str(model), module="without_slots", max_loras=2)
    await engine.start()
    yield engine
    await engine.stop()


async def test_adapters_come_and_go_by_building_the_engine_anew(
    engine: LmdeployEngine, reference: dict[str | None, Reference], adapters: dict[str, Path]
) -> None:
    first, second, third = adapters
    await engine.load_adapter(first, adapters[first])
    await check(engine, reference, asked(40), asked(20, first))
    running = asyncio.create_task(check(engine, reference, asked(33, max_new_tokens=200), asked(34, first)))
    while not engine.stats().running:
        await asyncio.sleep(0.01)
    loading = asyncio.create_task(engine.load_adapter(second, adapters[second]))
    await check(engine, reference, asked(17), asked(18, first))
    await asyncio.gather(running, loading)
    await check(engine, reference, *(asked(length, name) for length in (9, 50) for name in (None, first, second)))
    await engine.load_adapter(third, adapters[third])
    assert set(engine.stats().adapter_slots) == {first, second}
    await check(engine, reference, asked(21, third), asked(22, second), asked(23, first), asked(24))
    assert sum(engine.stats().adapter_loads.values()) > 3
    await engine.unload_adapter(third)
    with pytest.raises(EngineFailure):
        await answer(engine, asked(5, third))
    await check(engine, reference, asked(5, first), asked(6))
