"""Adapters are replaced and unloaded while requests use them, and keep their pins."""

from contextlib import aclosing
from pathlib import Path

import pytest

from engines.adapters.registry import AdapterRegistry
from engines.echo import EchoEngine
from engines.errors import (
    InvalidAdapter,
    ModelNotFound,
)
from engines.types import GenerationRequest, Sampling
from tests.adapter_folders import write_adapter
from tests.engines.adapters.registries import ask, copies, left, settled

# ---- replacing and unloading while requests run


async def test_requests_in_flight_keep_their_version_and_new_ones_get_the_new_one(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    first = await registry.load("a", write_adapter(tmp_path / "1"))
    lease = await registry.lease("a")
    second = await registry.load("a", write_adapter(tmp_path / "2", seed=1), replace=True)
    assert lease.version == first.version != second.version
    assert await ask(engine, registry, "a") == second.version
    assert [(adapter.version, adapter.state) for adapter in registry.adapters()] == [
        (second.version, "slot"),
        (first.version, "draining"),
    ]
    assert first.version in engine.stats().adapter_host and copies(tmp_path) == 2
    lease.release()
    await settled(registry)
    assert engine.stats().adapter_host == (second.version,) and copies(tmp_path) == 1
    assert [adapter.version for adapter in registry.adapters()] == [second.version]


async def test_an_answer_that_has_begun_ends_with_the_version_that_began_it(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    first = await registry.load("a", write_adapter(tmp_path / "1"))
    lease = await registry.lease("a")
    request = GenerationRequest(
        request_id="r", prompt_ids=[*b"hi"], sampling=Sampling(max_new_tokens=99), adapter=lease.version
    )
    async with aclosing(engine.generate(request)) as outputs:
        tokens = [*(await anext(outputs)).token_ids]
        await registry.load("a", write_adapter(tmp_path / "2", seed=1), replace=True)
        await registry.unload("a")
        tokens += [token async for output in outputs for token in output.token_ids]
    lease.release()
    await settled(registry)
    assert bytes(tokens[:-1]).decode() == f"{first.version}: hi"
    assert left(registry, engine, tmp_path) == ([], (), 0)


async def test_a_name_is_gone_at_once_and_the_weights_with_the_last_request(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    await registry.load("a", write_adapter(tmp_path / "1"))
    leases = [await registry.lease("a") for _ in range(2)]
    await registry.unload("a")
    for gone in (registry.lease("a"), registry.unload("a")):
        with pytest.raises(ModelNotFound):
            await gone
    with pytest.raises(ModelNotFound) as error:
        registry.get("a")
    assert error.value.code == "adapter_not_found"
    leases[0].release()
    leases[0].release()
    await settled(registry)
    assert [adapter.in_flight for adapter in registry.adapters()] == [1] and engine.stats().adapter_host
    leases[1].release()
    await settled(registry)
    assert left(registry, engine, tmp_path) == ([], (), 0)


async def test_without_requests_the_weights_are_gone_when_unload_returns(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    await registry.load("a", write_adapter(tmp_path / "1"))
    await registry.unload("a")
    assert left(registry, engine, tmp_path) == ([], (), 0)


async def test_the_same_content_again_is_no_new_version(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    first = await registry.load("a", write_adapter(tmp_path / "1"))
    lease = await registry.lease("a")
    again = await registry.load("a", write_adapter(tmp_path / "2", base_model_name_or_path=None), replace=True)
    assert again.version == first.version and len(registry.adapters()) == 1 and copies(tmp_path) == 1
    lease.release()
    await settled(registry)
    assert await ask(engine, registry, "a") == first.version


async def test_a_draining_version_that_is_loaded_again_is_served_again(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "1")
    first = await registry.load("a", folder)
    lease = await registry.lease("a")
    await registry.unload("a")
    assert (await registry.load("a", folder)).version == first.version
    lease.release()
    await settled(registry)
    assert await ask(engine, registry, "a") == first.version and copies(tmp_path) == 1


async def test_going_back_and_forth_between_two_versions_leaves_one(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    folders = [write_adapter(tmp_path / f"{seed}", seed=seed) for seed in range(2)]
    await registry.load("a", folders[0])
    for turn in range(10):
        lease = await registry.lease("a")
        adapter = await registry.load("a", folders[1 - turn % 2], replace=True)
        assert await ask(engine, registry, "a") == adapter.version != lease.version
        lease.release()
    await settled(registry)
    assert engine.stats().adapter_host == (adapter.version,) and copies(tmp_path) == 1


# ---- pins


async def test_a_pin_stays_with_the_name_unless_told_otherwise(registry: AdapterRegistry, tmp_path: Path) -> None:
    assert not (await registry.load("a", write_adapter(tmp_path / "0"))).pinned
    assert (await registry.load("a", write_adapter(tmp_path / "0"), replace=True, pinned=True)).pinned
    assert (await registry.load("a", write_adapter(tmp_path / "1", seed=1), replace=True)).pinned
    assert not (await registry.load("a", write_adapter(tmp_path / "1", seed=1), replace=True, pinned=False)).pinned


async def test_a_pinned_adapter_can_be_replaced_where_there_is_no_room_for_one_more(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    for name in "ab":
        await registry.load(name, write_adapter(tmp_path / name), pinned=True)
    with pytest.raises(InvalidAdapter) as error:
        await registry.load("c", write_adapter(tmp_path / "c"), pinned=True)
    assert error.value.param == "pinned"
    lease = await registry.lease("a")
    assert (await registry.load("a", write_adapter(tmp_path / "d", seed=1), replace=True)).pinned
    lease.release()
    await registry.unload("b")
    await registry.load("c", write_adapter(tmp_path / "c"), pinned=True)
