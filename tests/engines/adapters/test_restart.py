"""Adapters from one run of the server to the next."""

import asyncio
import shutil
from pathlib import Path

import pytest

from engines.adapters import held
from engines.adapters.registry import AdapterRegistry
from engines.adapters.state import BrokenState
from engines.echo import EchoEngine
from engines.errors import (
    Conflict,
    ModelNotFound,
)
from tests.adapter_folders import write_adapter
from tests.engines.adapters.registries import Make, ask, copies, restarted


async def test_everything_is_back_after_a_restart(
    registry: AdapterRegistry, make: Make, engine: EchoEngine, tmp_path: Path
) -> None:
    kept = await registry.load("a", write_adapter(tmp_path / "0"), pinned=True)
    await registry.load("b", write_adapter(tmp_path / "1", seed=1))
    second = await registry.load("b", write_adapter(tmp_path / "2", seed=2), replace=True)
    await registry.load("c", write_adapter(tmp_path / "3", seed=3))
    await registry.unload("c")
    await registry.alias("prod", "b")
    shutil.rmtree(tmp_path / "0")
    engine, again = await restarted(make, registry)
    assert again.adapters() == [kept, second] and again.aliases() == {"prod": "b"}
    assert await ask(engine, again, "a") == kept.version
    assert await ask(engine, again, "prod") == second.version
    assert copies(tmp_path) == 2
    await again.unload("a")
    assert copies(tmp_path) == 1


async def test_what_is_not_durable_is_not_back(
    registry: AdapterRegistry, make: Make, engine: EchoEngine, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "0")
    await registry.load("a", folder, durable=False)
    await registry.load("b", folder)
    await registry.load("b", folder, durable=False, replace=True)
    await registry.load("c", folder, durable=False)
    await registry.load("c", folder, replace=True)
    _, again = await restarted(make, registry)
    assert [adapter.name for adapter in again.adapters()] == ["c"] and copies(tmp_path) == 1


async def test_an_adapter_that_does_not_fit_any_more_is_kept_and_not_served(
    registry: AdapterRegistry, make: Make, engine: EchoEngine, tmp_path: Path
) -> None:
    kept = await registry.load("a", write_adapter(tmp_path / "0"))
    other = await registry.load("b", write_adapter(tmp_path / "1", seed=1, base_model_name_or_path=None))
    await registry.alias("prod", "a")
    engine, again = await restarted(make, registry, model="tests/another")
    failed, served = again.adapters()
    assert (failed.name, failed.state, failed.version, failed.source) == ("a", "failed", "", kept.source)
    assert "'echo'" in failed.error and "'another'" in failed.error
    assert await ask(engine, again, "b") == served.version == other.version
    for model in ("a", "prod"):
        with pytest.raises(ModelNotFound, match="'another'"):
            await again.lease(model)
    with pytest.raises(ModelNotFound, match="'another'"):
        await again.alias("other", "a")
    with pytest.raises(Conflict, match="'another'"):
        await again.load("a", write_adapter(tmp_path / "2"))
    _, back = await restarted(make, again)
    assert [adapter.state for adapter in back.adapters()] == ["host", "host"] and back.aliases() == {"prod": "a"}


async def test_a_failed_adapter_can_be_replaced_or_unloaded(
    registry: AdapterRegistry, make: Make, engine: EchoEngine, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        await registry.load(name, write_adapter(tmp_path / name, seed=seed))
    _, again = await restarted(make, registry, model="tests/another")
    assert copies(tmp_path) == 2
    folder = write_adapter(tmp_path / "2", seed=2, base_model_name_or_path="another")
    replaced = await again.load("a", folder, replace=True)
    await again.unload("b")
    assert again.adapters() == [replaced] and copies(tmp_path) == 1


@pytest.mark.parametrize("damage", ["gone", "half"])
async def test_a_damaged_copy_fails_alone(
    registry: AdapterRegistry, make: Make, engine: EchoEngine, tmp_path: Path, damage: str
) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        await registry.load(name, write_adapter(tmp_path / name, seed=seed))
        if name == "a":
            (copy,) = (tmp_path / "state" / "adapters" / "copies").iterdir()
    if damage == "gone":
        shutil.rmtree(copy)
    else:
        (copy / "adapter_model.safetensors").write_bytes(b"half")
    _, again = await restarted(make, registry)
    assert [adapter.state for adapter in again.adapters()] == ["failed", "host"]
    await again.load("a", write_adapter(tmp_path / "a"), replace=True)
    assert [adapter.state for adapter in again.adapters()] == ["host", "host"] and copies(tmp_path) == 2


async def test_an_adapter_named_as_the_new_base_model_is_kept_and_not_served(
    registry: AdapterRegistry, make: Make, engine: EchoEngine, tmp_path: Path
) -> None:
    await registry.load("a", write_adapter(tmp_path / "a"))
    engine, again = await restarted(make, registry, base_name="a")
    assert [adapter.state for adapter in again.adapters()] == ["failed"]
    assert await ask(engine, again, "a") == ""


async def test_a_death_of_the_engine_while_adapters_come_back_is_waited_out(
    registry: AdapterRegistry, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "RETRY_SECONDS", 0.001)
    for name in "ab":
        await registry.load(name, write_adapter(tmp_path / name))
    await registry.close()
    engine = EchoEngine()
    await engine.start()
    engine.die()
    again = make(engine)
    restoring = asyncio.create_task(again.restore())
    await asyncio.sleep(0.01)
    assert not restoring.done()
    await engine.start()
    await restoring
    assert [adapter.state for adapter in again.adapters()] == ["host", "host"]


async def test_an_engine_that_stops_while_adapters_come_back_ends_the_wait(
    registry: AdapterRegistry, make: Make, tmp_path: Path
) -> None:
    await registry.load("a", write_adapter(tmp_path / "a"))
    await registry.close()
    engine = EchoEngine()
    await engine.start()
    await engine.stop()
    again = make(engine)
    await again.restore()
    assert [adapter.state for adapter in again.adapters()] == ["failed"]


async def test_a_state_folder_has_one_server_at_a_time(
    registry: AdapterRegistry, make: Make, engine: EchoEngine, tmp_path: Path
) -> None:
    kept = await registry.load("a", write_adapter(tmp_path / "a"))
    other = make()
    await other.restore()
    assert other.adapters() == [] and (await other.lease("echo")).version is None
    for change in (other.load("b", write_adapter(tmp_path / "b")), other.alias("b", "a")):
        with pytest.raises(Conflict, match="state_dir"):
            await change
    with pytest.raises(ModelNotFound):
        await other.unload("a")
    assert await ask(engine, registry, "a") == kept.version
    _, again = await restarted(make, registry)
    assert again.adapters() == [kept]


async def test_a_state_folder_that_cannot_be_used_stops_no_base_model(
    make: Make, engine: EchoEngine, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    registry = make(state_dir=tmp_path / "file" / "state")
    await registry.restore()
    assert await ask(engine, registry, "echo") == ""
    with pytest.raises(Conflict, match="state_dir"):
        await registry.load("a", write_adapter(tmp_path / "a"))


async def test_a_state_file_that_is_not_ours_is_neither_used_nor_written_over(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "state" / "adapters" / "state.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}{}")
    with pytest.raises(BrokenState):
        await make().restore()
    assert file.read_text() == "{}{}"
