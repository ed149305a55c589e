"""Registries on the engine without a model, whose answers tell the version that they used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.adapters.registry import AdapterRegistry
from engines.adapters.view import Adapter
from engines.echo import EchoEngine
from engines.types import GenerationRequest, Sampling

Make = Callable[..., AdapterRegistry]
"""Makes a registry with other parameters than the usual ones."""


async def restarted(make: Make, registry: AdapterRegistry, **changes: Any) -> tuple[EchoEngine, AdapterRegistry]:
    """A new server in the place of an old one."""
    await registry.close()
    engine = EchoEngine(max_loras=3)
    await engine.start()
    again = make(engine, **changes)
    await again.restore()
    return engine, again


async def ask(engine: EchoEngine, registry: AdapterRegistry, model: str) -> str:
    """The version that answers, "" for the base model."""
    lease = await registry.lease(model)
    try:
        request = GenerationRequest(
            request_id=f"{id(lease)}", prompt_ids=[*b"hi"], sampling=Sampling(max_new_tokens=99), adapter=lease.version
        )
        tokens = [token async for output in engine.generate(request) for token in output.token_ids if token < 256]
        return bytes(tokens).decode().removesuffix("hi").removesuffix(": ")
    finally:
        lease.release()


async def settled(registry: AdapterRegistry) -> None:
    """Return once what releases have set off has been done."""
    while registry._changes.running:
        await registry._changes.finish()


def copies(tmp_path: Path) -> int:
    assert not [*(tmp_path / "state" / "adapters" / "partial").iterdir()]
    return len([*(tmp_path / "state" / "adapters" / "copies").iterdir()])


def left(registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path) -> tuple[list[Adapter], tuple[str, ...], int]:
    return registry.adapters(), engine.stats().adapter_host, copies(tmp_path)
