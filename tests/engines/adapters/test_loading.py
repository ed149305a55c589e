"""Adapters are loaded whole or not at all."""

import shutil
import stat
from pathlib import Path

import pytest

from engines.adapters import published
from engines.adapters.registry import AdapterRegistry
from engines.adapters.spec import CONFIG
from engines.capabilities import Capabilities
from engines.echo import EchoEngine
from engines.errors import (
    Conflict,
    EngineFailure,
    EngineUnavailable,
    InvalidAdapter,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    UnsupportedParameter,
)
from tests.adapter_folders import write_adapter
from tests.engines.adapters.registries import Make, ask, copies, left

# ---- loading


async def test_an_adapter_is_loaded_and_serves_by_its_name(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    adapter = await registry.load("a", write_adapter(tmp_path / "trained"))
    assert adapter == registry.get("a") and registry.adapters() == [adapter]
    assert (adapter.name, adapter.source, adapter.rank, adapter.state) == ("a", "trained", 2, "host")
    assert adapter.version.startswith("a@") and len(adapter.version) == len("a@") + 12
    for model in ("a", "echo:a"):
        assert await ask(engine, registry, model) == adapter.version
    assert await ask(engine, registry, "echo") == ""
    used = registry.get("a")
    assert (used.state, used.requests, used.in_flight) == ("slot", 2, 0)
    assert used.last_used is not None and used.last_used >= used.created


async def test_the_source_may_vanish_once_it_is_loaded(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    adapter = await registry.load("a", write_adapter(tmp_path / "trained"))
    shutil.rmtree(tmp_path / "trained")
    assert await ask(engine, registry, "a") == adapter.version


async def test_the_same_content_under_two_names_is_two_adapters_and_one_copy(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "trained")
    versions = [(await registry.load(name, folder)).version for name in "ab"]
    assert [await ask(engine, registry, name) for name in "ab"] == versions
    assert len({*versions}) == 2 and copies(tmp_path) == 1
    await registry.unload("a")
    assert await ask(engine, registry, "b") == versions[1] and copies(tmp_path) == 1
    await registry.unload("b")
    assert copies(tmp_path) == 0


async def test_a_name_is_taken_only_once(registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path) -> None:
    first = await registry.load("a", write_adapter(tmp_path / "1"))
    for seed in (0, 1):
        with pytest.raises(Conflict, match="'a' is loaded already"):
            await registry.load("a", write_adapter(tmp_path / "2", seed=seed))
    assert await ask(engine, registry, "a") == first.version and copies(tmp_path) == 1


@pytest.mark.parametrize("name", ["echo", "echo:a", "..", "a b", ""])
async def test_what_cannot_be_a_name_is_refused(registry: AdapterRegistry, tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "a")
    await registry.load("a", folder)
    with pytest.raises(InvalidRequest):
        await registry.load(name, folder, replace=True)
    with pytest.raises(InvalidRequest):
        await registry.alias(name, "a")


async def test_state_is_private_to_its_user(registry: AdapterRegistry, tmp_path: Path) -> None:
    await registry.load("a", write_adapter(tmp_path / "a"))
    for folder in ("state", "state/adapters", "state/adapters/copies"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700


# ---- loads that fail


async def test_an_adapter_that_does_not_fit_leaves_nothing_behind(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    bad = {
        "r": write_adapter(tmp_path / "1", rank=17),
        "base_model_name_or_path": write_adapter(tmp_path / "2", base_model_name_or_path="other"),
        CONFIG: tmp_path / "state",
    }
    for param, folder in bad.items():
        with pytest.raises(InvalidAdapter) as error:
            await registry.load("a", folder)
        assert error.value.param == param
    with pytest.raises(NotFound):
        await registry.load("a", tmp_path / "nothing")
    assert left(registry, engine, tmp_path) == ([], (), 0)
    with pytest.raises(ModelNotFound):
        await registry.lease("a")


@pytest.mark.parametrize(
    "error", [InvalidAdapter("not finite"), EngineFailure("died"), EngineUnavailable("restarting")]
)
async def test_an_engine_that_fails_to_load_leaves_nothing_behind(
    registry: AdapterRegistry,
    engine: EchoEngine,
    tmp_path: Path,
    error: EngineFailure | EngineUnavailable | InvalidAdapter,
) -> None:
    folder = write_adapter(tmp_path / "1")
    engine.faults.adapter_error = error
    with pytest.raises(type(error)):
        await registry.load("a", folder)
    assert left(registry, engine, tmp_path) == ([], (), 0)
    engine.faults.adapter_error = None
    await registry.load("a", folder)


async def test_a_disk_that_fails_leaves_nothing_behind(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(file: Path, state: object) -> None:
        raise OSError("no space left on the device")

    kept = await registry.load("kept", write_adapter(tmp_path / "0"), pinned=True)
    monkeypatch.setattr(published, "write_state", no_room)
    for name, seed, pinned in (("a", 1, False), ("kept", 1, None), ("kept", 0, False)):
        with pytest.raises(OSError):
            await registry.load(name, write_adapter(tmp_path / "1", seed=seed), replace=True, pinned=pinned)
        assert left(registry, engine, tmp_path) == ([kept], (kept.version,), 1)
    for change in (registry.unload("kept"), registry.alias("b", "kept")):
        with pytest.raises(OSError):
            await change
    assert await ask(engine, registry, "kept") == kept.version and registry.aliases() == {}


async def test_a_replacement_that_fails_leaves_the_old_version(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    first = await registry.load("a", write_adapter(tmp_path / "1"), pinned=True)
    with pytest.raises(InvalidAdapter):
        await registry.load("a", write_adapter(tmp_path / "2", rank=17), replace=True)
    engine.faults.adapter_error = InvalidAdapter("not finite")
    with pytest.raises(InvalidAdapter):
        await registry.load("a", write_adapter(tmp_path / "2", seed=1), replace=True, pinned=False)
    assert registry.adapters() == [first]
    assert await ask(engine, registry, "a") == first.version and copies(tmp_path) == 1


async def test_an_engine_without_adapters_loads_none(
    make: Make, engine: EchoEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = make()
    monkeypatch.setattr(engine, "_capabilities", Capabilities(max_model_len=9, vocab_size=9))
    await registry.restore()
    with pytest.raises(UnsupportedParameter):
        await registry.load("a", write_adapter(tmp_path / "a"))
