"""Changes of one name keep their order, those of others do not wait, and none that has begun is lost."""

import asyncio

from engines.adapters.changes import Changes


async def test_changes_of_one_name_come_one_after_another_and_others_go_on() -> None:
    changes, go, done = Changes(), asyncio.Event(), []

    async def slow() -> None:
        await go.wait()
        done.append("first")

    async def quick(what: str) -> None:
        done.append(what)

    first = changes.begin("a", slow())
    second = changes.begin("a", quick("second"))
    await changes.run("b", quick("other"))
    assert done == ["other"] and not second.done()
    go.set()
    await asyncio.gather(first, second)
    assert done == ["other", "first", "second"] and not changes.running


async def test_a_change_goes_on_where_its_caller_is_cancelled() -> None:
    changes, go, done = Changes(), asyncio.Event(), []

    async def slow() -> None:
        await go.wait()
        done.append("done")

    caller = asyncio.create_task(changes.run("a", slow()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    assert caller.cancelled() and not done
    go.set()
    await changes.finish()
    assert done == ["done"]


async def test_a_change_that_fails_holds_up_nobody() -> None:
    changes = Changes()

    async def fail() -> None:
        raise OSError

    async def succeed() -> str:
        return "done"

    changes.begin("a", fail())
    assert await changes.run("a", succeed()) == "done"
    await changes.finish()
