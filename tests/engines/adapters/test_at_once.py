"""Changes of adapters and requests for them, all at once."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from engines.adapters.registry import AdapterRegistry
from engines.echo import EchoEngine
from engines.errors import (
    Conflict,
    InvalidAdapter,
    ModelNotFound,
)
from tests.adapter_folders import write_adapter
from tests.engines.adapters.registries import Make, ask, copies, restarted, settled


async def test_changes_of_one_name_come_one_after_another(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    engine.faults.adapter_delay = 0.01
    folders = [write_adapter(tmp_path / f"{seed}", seed=seed) for seed in range(4)]
    results = await asyncio.gather(
        *(registry.load("a", folder) for folder in folders),
        registry.unload("a"),
        *(registry.load("a", folder, replace=True) for folder in folders),
        return_exceptions=True,
    )
    assert [isinstance(result, Conflict) for result in results] == [False, True, True, True, False, *[False] * 4]
    last = results[-1]
    assert not isinstance(last, BaseException)
    assert engine.stats().adapter_host == (last.version,) and copies(tmp_path) == 1


async def test_a_slow_load_holds_up_no_other_name(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, gate, load = asyncio.Event(), asyncio.Event(), engine.load_adapter

    async def gated(version: str, folder: Path, *, pinned: bool = False) -> None:
        if version.startswith("slow@"):
            started.set()
            await gate.wait()
        await load(version, folder, pinned=pinned)

    monkeypatch.setattr(engine, "load_adapter", gated)
    slow = asyncio.create_task(registry.load("slow", write_adapter(tmp_path / "1")))
    await started.wait()
    other = await registry.load("other", write_adapter(tmp_path / "2", seed=1))
    await registry.alias("prod", "other")
    assert await ask(engine, registry, "prod") == other.version
    await registry.unload("prod")
    await registry.unload("other")
    with pytest.raises(ModelNotFound):
        await registry.lease("slow")
    gate.set()
    version = (await slow).version
    assert await ask(engine, registry, "slow") == version


async def test_a_load_goes_on_where_its_caller_is_cancelled(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    engine.faults.adapter_delay = 0.01
    caller = asyncio.create_task(registry.load("a", write_adapter(tmp_path / "a")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await settled(registry)
    assert await ask(engine, registry, "a") == registry.get("a").version


async def test_no_request_fails_and_none_gets_a_version_that_was_replaced_before_it_came(
    registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path
) -> None:
    folders = [write_adapter(tmp_path / f"{seed}", seed=seed) for seed in range(5)]
    published = [(await registry.load("a", folders[0])).version]
    answers: list[tuple[int, str]] = []  # how many versions had been published when it came, and which one answered

    async def client() -> None:
        while len(published) < len(folders):
            answers.append((len(published), await ask(engine, registry, "a")))

    clients = [asyncio.create_task(client()) for _ in range(8)]
    for folder in folders[1:]:
        published.append((await registry.load("a", folder, replace=True)).version)
    await asyncio.gather(*clients)
    await settled(registry)
    assert all(answered in published[known - 1 :] for known, answered in answers)
    assert engine.stats().adapter_host == (published[-1],) and copies(tmp_path) == 1


async def test_whatever_is_done_at_once_no_answer_fails_and_nothing_is_left_over(
    registry: AdapterRegistry, make: Make, engine: EchoEngine, tmp_path: Path
) -> None:
    random = Random(0)
    names, aliases = ["a", "b", "c"], ["x", "y"]
    folders = [write_adapter(tmp_path / f"{seed}", seed=seed) for seed in range(4)]
    engine.faults.adapter_delay = engine.faults.token_delay = 0.0001

    async def change() -> None:
        match random.choice(["load", "replace", "replace", "unload", "alias"]):
            case "load":
                await registry.load(random.choice(names), random.choice(folders), durable=random.random() < 0.7)
            case "replace":
                pinned = random.choice([True, False, None])
                await registry.load(random.choice(names), random.choice(folders), replace=True, pinned=pinned)
            case "unload":
                await registry.unload(random.choice(names + aliases))
            case "alias":
                await registry.alias(random.choice(aliases), random.choice(names))

    async def work(something: Callable[[], Awaitable[object]], times: int) -> None:
        for _ in range(times):
            try:
                await something()
            except (Conflict, ModelNotFound):
                pass
            except InvalidAdapter as error:
                assert error.param == "pinned"
            await asyncio.sleep(random.random() / 1000)

    changes = [work(change, 50) for _ in range(4)]
    requests = [work(lambda: ask(engine, registry, random.choice(names + aliases)), 100) for _ in range(8)]
    await asyncio.gather(*changes, *requests)
    await settled(registry)

    adapters = registry.adapters()
    assert {*engine.stats().adapter_host} == {adapter.version for adapter in adapters}
    assert all(adapter.in_flight == 0 for adapter in adapters) and {*registry.aliases().values()} <= {*names}
    contents = {adapter.version.partition("@")[2] for adapter in adapters}
    assert copies(tmp_path) == len(contents)
    kept, pins = registry.aliases(), {adapter.version: adapter.pinned for adapter in adapters}
    _, again = await restarted(make, registry)
    assert again.aliases() == kept
    assert {adapter.version: adapter.pinned for adapter in again.adapters()}.items() <= pins.items()
