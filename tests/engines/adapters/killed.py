"""Changes to adapters that are killed at every one of their steps: the next server finds the state before or after."""

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from engines.adapters.registry import AdapterRegistry
from engines.echo import EchoEngine
from tests.adapter_folders import write_adapter
from tests.killed import FILE_EVENTS, Killer, check_all_or_nothing

Work = Callable[[AdapterRegistry], Awaitable[Any]]
killer = Killer()
root = Path(sys.argv[-1])
first, second = root / "first", root / "second"


class Engine(EchoEngine):
    """To load and to unload are steps."""

    async def load_adapter(self, *args: Any, **kwargs: Any) -> None:
        killer.step()
        await super().load_adapter(*args, **kwargs)
        killer.step()

    async def unload_adapter(self, *args: Any) -> None:
        killer.step()
        await super().unload_adapter(*args)
        killer.step()


async def server(work: Work) -> Any:
    engine = Engine()
    await engine.start()
    registry = AdapterRegistry(engine, base_name="echo", model="tests/echo", state_dir=root / "state")
    await registry.restore()
    seen = await work(registry)
    await registry.close()
    return seen


async def prepare(registry: AdapterRegistry) -> None:
    await registry.load("a", first)
    await registry.load("b", second)
    await registry.load("spare", first)
    await registry.alias("prod", "a")


async def load(registry: AdapterRegistry) -> None:
    await registry.load("c", second)


async def replace(registry: AdapterRegistry) -> None:
    await registry.load("a", second, replace=True, pinned=True)


async def unload(registry: AdapterRegistry) -> None:
    await registry.unload("b")


async def alias(registry: AdapterRegistry) -> None:
    await registry.alias("other", "a")


async def repoint(registry: AdapterRegistry) -> None:
    await registry.alias("prod", "b")


async def remove_alias(registry: AdapterRegistry) -> None:
    await registry.unload("prod")


async def look(registry: AdapterRegistry) -> tuple[dict[str, str], dict[str, str]]:
    """Versions by names, and aliases; the private copies are theirs and no more."""
    assert all(adapter.state == "host" for adapter in registry.adapters()), registry.adapters()
    copies = {path.name for path in (root / "state" / "adapters" / "copies").iterdir()}
    assert len(copies) == len({adapter.version.partition("@")[2] for adapter in registry.adapters()}), copies
    assert not [*(root / "state" / "adapters" / "partial").iterdir()]
    return {adapter.name: adapter.version for adapter in registry.adapters()}, dict(registry.aliases())


async def use(registry: AdapterRegistry) -> None:
    await registry.load("new", second)
    await registry.alias("latest", "new")
    await registry.unload("latest")
    await registry.unload("new")


def still_works(seen: Any) -> None:
    asyncio.run(server(use))
    assert asyncio.run(server(look)) == seen


def begin_anew() -> None:
    shutil.rmtree(root / "state")
    shutil.copytree(root / "prepared", root / "state")


def kill_at_every_step(work: Work) -> str:
    def change(steps: int) -> None:
        async def armed(registry: AdapterRegistry) -> None:
            killer.arm(steps)
            await work(registry)
            killer.disarm()

        asyncio.run(server(armed))

    return check_all_or_nothing(begin_anew, change, lambda: asyncio.run(server(look)), still_works)


def main() -> None:
    write_adapter(first)
    write_adapter(second, seed=1)
    killer.watch_events(FILE_EVENTS | {"os.scandir"})
    for name in ("fsync", "write"):
        killer.watch_calls(os, name)
    asyncio.run(server(prepare))
    shutil.copytree(root / "state", root / "prepared")
    for work in (load, replace, unload, alias, repoint, remove_alias):
        sys.stdout.write(f"{work.__name__}: {kill_at_every_step(work)}\n")


if __name__ == "__main__":
    main()
