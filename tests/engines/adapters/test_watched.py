"""A folder whose subfolders are adapters, loaded when a request names them."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engines.adapters.loading import AdapterLoader
from engines.adapters.registry import AdapterRegistry
from engines.adapters.spec import CONFIG, WEIGHTS
from engines.adapters.watched import WatchedFolder
from engines.echo import EchoEngine
from engines.errors import Conflict, EngineFailure, ModelNotFound
from tests.adapter_folders import write_adapter


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    (tmp_path / "watched").mkdir()
    return tmp_path / "watched"


@pytest.fixture
async def engine() -> EchoEngine:
    engine = EchoEngine()
    await engine.start()
    return engine


@pytest.fixture
async def registry(engine: EchoEngine, tmp_path: Path, watched: Path) -> AsyncIterator[AdapterRegistry]:
    registry = AdapterRegistry(
        engine, base_name="echo", model="tests/echo", state_dir=tmp_path / "state", adapter_dir=watched
    )
    await registry.restore()
    yield registry
    await registry.close()


async def version(registry: AdapterRegistry, model: str) -> str | None:
    """What a request for `model` would use."""
    lease = await registry.lease(model)
    lease.release()
    return lease.version


# ---- which folders are adapters


def test_a_subfolder_with_an_adapter_is_found(watched: Path) -> None:
    write_adapter(watched / "a")
    (watched / "empty").mkdir()
    (watched / "file").touch()
    find = WatchedFolder(watched).find
    assert find("a") is not None
    assert [find(name) for name in ("b", "empty", "file")] == [None] * 3


@pytest.mark.parametrize(
    "name", ["..", ".", "", ".hidden", "a/b", "../outside", "/", "a/../../outside", "a\\b", "a\0", "a\n"]
)
def test_nothing_but_a_subfolder_is_looked_at(watched: Path, name: str) -> None:
    for folder in (watched / ".hidden", watched / "a" / "b", watched.parent / "outside"):
        write_adapter(folder)
    assert WatchedFolder(watched).find(name) is None


def test_a_link_that_leads_out_of_the_folder_is_not_followed(watched: Path) -> None:
    write_adapter(watched.parent / "outside")
    write_adapter(watched / "a.v2")
    (watched / "out").symlink_to(watched.parent / "outside")
    (watched / "a").symlink_to("a.v2")
    (watched / "round").symlink_to("round")
    find = WatchedFolder(watched).find
    assert find("out") is None and find("round") is None
    assert find("a") is not None


def test_a_folder_that_is_a_link_itself_is_fine(watched: Path) -> None:
    write_adapter(watched / "a")
    (watched.parent / "link").symlink_to(watched)
    assert WatchedFolder(watched.parent / "link").find("a") is not None


# ---- on demand


async def test_a_request_loads_what_it_names(registry: AdapterRegistry, watched: Path) -> None:
    write_adapter(watched / "a")
    assert registry.adapters() == []
    for model in ("a", "echo:a"):
        assert await version(registry, model) == registry.get("a").version
    with pytest.raises(ModelNotFound):
        await registry.lease("b")


async def test_first_requests_at_once_load_once(
    registry: AdapterRegistry, engine: EchoEngine, watched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], engine.load_adapter

    async def counted(version: str, folder: Path, *, pinned: bool = False) -> None:
        loads.append(version)
        await asyncio.sleep(0.01)
        await load(version, folder, pinned=pinned)

    monkeypatch.setattr(engine, "load_adapter", counted)
    write_adapter(watched / "a")
    assert {*await asyncio.gather(*(version(registry, "a") for _ in range(20)))} == {*loads}
    assert len(loads) == 1


async def test_the_next_request_gets_what_has_changed(registry: AdapterRegistry, watched: Path, tmp_path: Path) -> None:
    write_adapter(watched / "a")
    lease = await registry.lease("a")
    write_adapter(watched / "a", seed=1)
    second = await version(registry, "a")
    assert second != lease.version
    (watched / "a").rename(tmp_path / "old")
    write_adapter(tmp_path / "new").rename(watched / "a")
    assert await version(registry, "a") == lease.version
    lease.release()


async def test_a_change_that_cannot_be_served_leaves_the_old_version_and_says_why(
    registry: AdapterRegistry, watched: Path
) -> None:
    first = await version(registry, write_adapter(watched / "a").name)
    write_adapter(watched / "a", seed=1, rank=17)
    assert await version(registry, "a") == first
    assert "rank 17" in registry.get("a").error
    (watched / "a" / WEIGHTS).unlink()
    assert await version(registry, "a") == first
    assert WEIGHTS in registry.get("a").error
    write_adapter(watched / "a", seed=1)
    assert await version(registry, "a") not in (None, first)
    assert registry.get("a").error == ""


async def test_one_that_cannot_be_served_is_refused_with_its_reason_until_it_changes(
    registry: AdapterRegistry, watched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(watched / "a", rank=17)
    for _ in range(2):
        with pytest.raises(ModelNotFound, match="rank 17"):
            await registry.lease("a")
        monkeypatch.setattr(AdapterLoader, "load", None)  # it is not tried again
    monkeypatch.undo()
    assert [(adapter.state, adapter.source) for adapter in registry.adapters()] == [("failed", "a")]
    write_adapter(watched / "a")
    assert await version(registry, "a") == registry.get("a").version


async def test_a_folder_that_has_gone_takes_its_name_with_it(
    registry: AdapterRegistry, engine: EchoEngine, watched: Path
) -> None:
    write_adapter(watched / "a")
    lease = await registry.lease("a")
    shutil.rmtree(watched / "a")
    with pytest.raises(ModelNotFound):
        await registry.lease("a")
    assert [adapter.state for adapter in registry.adapters()] == ["draining"]
    lease.release()
    await registry._changes.finish()
    assert engine.stats().adapter_host == ()


async def test_a_failure_of_the_engine_is_not_the_adapters(
    registry: AdapterRegistry, engine: EchoEngine, watched: Path
) -> None:
    write_adapter(watched / "a")
    engine.faults.adapter_error = EngineFailure("died")
    with pytest.raises(EngineFailure):
        await registry.lease("a")
    engine.faults.adapter_error = None
    assert await version(registry, "a") is not None


async def test_what_was_loaded_by_name_comes_before_what_lies_in_the_folder(
    registry: AdapterRegistry, watched: Path, tmp_path: Path
) -> None:
    loaded = await registry.load("a", write_adapter(tmp_path / "a", seed=1))
    write_adapter(watched / "a")
    assert await version(registry, "a") == loaded.version
    write_adapter(watched / "b")
    found = await version(registry, "b")
    with pytest.raises(Conflict):
        await registry.load("b", tmp_path / "a")
    loaded = await registry.load("b", tmp_path / "a", replace=True)
    assert await version(registry, "b") == loaded.version != found


async def test_one_that_is_unloaded_is_back_with_the_next_request_while_its_folder_is_there(
    registry: AdapterRegistry, watched: Path
) -> None:
    write_adapter(watched / "a")
    first = await version(registry, "a")
    await registry.unload("a")
    assert registry.adapters() == []
    assert await version(registry, "a") == first


async def test_an_alias_can_stand_for_one_that_nobody_has_asked_for_yet(
    registry: AdapterRegistry, watched: Path
) -> None:
    write_adapter(watched / "a")
    await registry.alias("prod", "a")
    assert await version(registry, "prod") == registry.get("a").version
    with pytest.raises(ModelNotFound):
        await registry.alias("other", "b")


async def test_an_alias_loads_its_adapter_after_a_restart(
    registry: AdapterRegistry, watched: Path, tmp_path: Path
) -> None:
    write_adapter(watched / "a")
    await registry.alias("prod", "a")
    await registry.close()
    engine = EchoEngine()
    await engine.start()
    again = AdapterRegistry(
        engine, base_name="echo", model="tests/echo", state_dir=tmp_path / "state", adapter_dir=watched
    )
    await again.restore()
    assert again.adapters() == [] and await version(again, "prod") == again.get("a").version
    await again.close()


async def test_the_base_models_name_is_never_looked_for(registry: AdapterRegistry, watched: Path) -> None:
    for name in ("echo", "echo:a"):
        write_adapter(watched / name)
    assert await version(registry, "echo") is None
    with pytest.raises(ModelNotFound):
        await registry.lease("echo:a")


async def test_links_within_an_adapters_folder_are_not_followed(
    registry: AdapterRegistry, watched: Path, tmp_path: Path
) -> None:
    write_adapter(watched / "a")
    (watched / "a" / WEIGHTS).rename(tmp_path / WEIGHTS)
    (watched / "a" / WEIGHTS).symlink_to(tmp_path / WEIGHTS)
    with pytest.raises(ModelNotFound, match="symbolic link"):
        await registry.lease("a")
    assert (watched / "a" / CONFIG).exists()
