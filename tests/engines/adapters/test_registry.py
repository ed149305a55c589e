"""Names, versions and those who use them, on the engine without a model: its answers tell the version that they
used."""

import asyncio
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from engines.adapters import held, published
from engines.adapters.registry import AdapterRegistry
from engines.adapters.spec import CONFIG
from engines.adapters.state import BrokenState
from engines.adapters.view import Adapter
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
from engines.types import GenerationRequest, Sampling
from tests.adapter_folders import write_adapter

Make = Callable[..., AdapterRegistry]


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


def left(registry: AdapterRegistry, engine: EchoEngine, tmp_path: Path) -> tuple[list[Adapter], tuple[str, ...], int]:
    return registry.adapters(), engine.stats().adapter_host, copies(tmp_path)


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


# ---- aliases


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


# ---- at once


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


# ---- from one run of the server to the next


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
