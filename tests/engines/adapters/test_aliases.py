"""Aliases of adapters, which follow and are repointed."""

from pathlib import Path

import pytest

from engines.adapters.registry import AdapterRegistry
from engines.echo import EchoEngine
from engines.errors import (
    Conflict,
    InvalidRequest,
    ModelNotFound,
)
from tests.adapter_folders import write_adapter
from tests.engines.adapters.registries import ask


async def test_an_alias_is_repointed_at_once_and_requests_in_flight_keep_what_they_have(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    versions = [(await registry.load(name, write_adapter(tmp_path / name))).version for name in "ab"]
    await registry.alias("prod", "a")
    lease = await registry.lease("prod")
    assert (lease.name, lease.version) == ("a", versions[0])
    await registry.alias("prod", "b")
    assert registry.aliases() == {"prod": "b"}
    for model in ("prod", "echo:prod"):
        assert await ask(engine, registry, model) == versions[1]
    assert registry.get("prod").name == "b"
    lease.release()


async def test_an_alias_follows_its_adapters_replacements(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    await registry.load("a", write_adapter(tmp_path / "0"))
    await registry.alias("prod", "a")
    second = await registry.load("a", write_adapter(tmp_path / "1", seed=1), replace=True)
    assert await ask(engine, registry, "prod") == second.version


async def test_an_alias_stands_for_an_adapter_and_nothing_else(registry: AdapterRegistry, tmp_path: Path) -> None:
    await registry.load("a", write_adapter(tmp_path / "a"))
    await registry.alias("prod", "a")
    for target in ("prod", "echo"):
        with pytest.raises(InvalidRequest) as refused:
            await registry.alias("other", target)
        assert refused.value.param == "target"
    with pytest.raises(ModelNotFound) as unknown:
        await registry.alias("other", "nothing")
    assert unknown.value.code == "adapter_not_found"
    with pytest.raises(Conflict):
        await registry.alias("a", "a")
    assert registry.aliases() == {"prod": "a"}


async def test_a_name_is_an_adapters_or_an_aliass(registry: AdapterRegistry, tmp_path: Path) -> None:
    await registry.load("a", write_adapter(tmp_path / "a"))
    await registry.alias("prod", "a")
    with pytest.raises(Conflict, match="alias of 'a'"):
        await registry.load("prod", write_adapter(tmp_path / "b"), replace=True)


async def test_an_adapter_goes_only_after_its_aliases(registry: AdapterRegistry, tmp_path: Path) -> None:
    await registry.load("a", write_adapter(tmp_path / "a"))
    await registry.alias("prod", "a")
    with pytest.raises(Conflict, match="'prod'"):
        await registry.unload("a")
    await registry.unload("prod")
    await registry.unload("a")
    assert registry.aliases() == {} and registry.adapters() == []
