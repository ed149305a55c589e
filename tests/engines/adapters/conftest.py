"""A registry on the engine without a model, and more of them on one state folder."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engines.adapters.registry import AdapterRegistry
from engines.echo import EchoEngine
from tests.engines.adapters.registries import Make


@pytest.fixture
async def engine() -> EchoEngine:
    engine = EchoEngine(max_loras=3)
    await engine.start()
    return engine


@pytest.fixture
async def make(engine: EchoEngine, tmp_path: Path) -> AsyncIterator[Make]:
    """Registries on `engine`, all with one state folder."""
    made: list[AdapterRegistry] = []

    def make(engine: EchoEngine = engine, **changes: Any) -> AdapterRegistry:
        arguments: dict[str, Any] = {
            "base_name": "echo",
            "model": "tests/echo",
            "state_dir": tmp_path / "state",
        } | changes
        made.append(AdapterRegistry(engine, **arguments))
        return made[-1]

    yield make
    for registry in made:
        await registry.close()


@pytest.fixture
async def registry(make: Make) -> AdapterRegistry:
    registry = make()
    await registry.restore()
    return registry
