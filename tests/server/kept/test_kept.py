"""What is kept: found by its owner, followed by others, bounded in number, size and time; nothing of it lost."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from engines.errors import InvalidRequest, NotFound, QuotaExceeded, StorageFull, StoreUnavailable
from server.kept import completions, shelf
from server.kept import responses as kept_responses
from server.kept import writer as kept_writer
from server.kept.completions import Filter, KeptCompletion
from server.kept.kept import Kept
from server.kept.responses import KeptResponse
from server.store.access import SERVER, Access
from tests.server.kept.conftest import Open

ACME, ZETA = (Access(owner=name, everything=False) for name in ("acme", "zeta"))


def message(id: str, text: str, role: str = "user") -> dict[str, Any]:
    return {"id": id, "type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def response(
    id: str, *, status: str = "completed", after: str | None = None, owner: str | None = "acme", text: str = "hi"
) -> KeptResponse:
    answer = {
        "id": id,
        "object": "response",
        "created_at": 1,
        "status": status,
        "model": "echo",
        "previous_response_id": after,
        "output": [message(f"out_{id}", text, "assistant")],
    }
    return KeptResponse(owner=owner, answer=answer, input=[message(f"in_{id}", text)])


async def kept_ids(kept: Kept, *ids: str) -> list[str]:
    found = []
    for id in ids:
        with contextlib.suppress(NotFound):
            found.append((await kept.responses.get(id, SERVER)).id)
    return found


async def test_a_response_is_found_as_soon_as_it_is_given_and_by_its_owner_alone(open_kept: Open) -> None:
    async with open_kept() as kept:
        kept.responses.keep_later(response("resp_1", text="\0 is \N{SNOWMAN}"))
        assert await kept.responses.get("resp_1", ACME) == response("resp_1", text="\0 is \N{SNOWMAN}")
        with pytest.raises(NotFound):
            await kept.responses.get("resp_1", ZETA)
        with pytest.raises(NotFound):
            await kept.responses.delete("resp_1", ZETA)
        await kept.responses.delete("resp_1", ACME)
        with pytest.raises(NotFound):
            await kept.responses.get("resp_1", ACME)


async def test_a_name_that_no_database_keeps_is_the_clients_fault(open_kept: Open) -> None:
    async with open_kept() as kept:
        with pytest.raises((NotFound, InvalidRequest)):
            await kept.responses.get("resp_\0", ACME)
        found = await kept.completions.page(Filter(metadata={"a": "b"}), ACME, after=None, limit=1)
        assert found == ([], False)


async def test_what_was_given_last_is_there_after_a_restart(open_kept: Open) -> None:
    async with open_kept() as kept:
        for number in range(100):
            kept.responses.keep_later(response(f"resp_{number}"))
    async with open_kept() as kept:
        assert len(await kept_ids(kept, *(f"resp_{number}" for number in range(100)))) == 100


async def test_a_response_goes_on_from_all_before_it(open_kept: Open) -> None:
    async with open_kept() as kept:
        for id, after in (("a", None), ("b", "a"), ("c", "b"), ("of zeta", None)):
            kept.responses.keep_later(response(id, after=after, owner="zeta" if id == "of zeta" else "acme"))
        ids = [item["id"] for item in await kept.responses.context("c", ACME)]
        assert ids == ["in_a", "out_a", "in_b", "out_b", "in_c", "out_c"]
        with pytest.raises(NotFound, match="of zeta"):
            await kept.responses.context("of zeta", ACME)
        await kept.responses.delete("a", ACME)
        with pytest.raises(NotFound, match="'a'"):
            await kept.responses.context("c", ACME)


async def test_a_chain_that_is_too_long_is_refused(open_kept: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_kept() as kept:
        for id, after in (("a", None), ("b", "a"), ("c", "b")):
            kept.responses.keep_later(response(id, after=after, text="x" * 100))
        for name, most in (("MAX_TURNS", 2), ("MAX_BYTES", 1400)):
            with monkeypatch.context() as patch:
                patch.setattr(kept_responses, name, most)
                assert len(await kept.responses.context("b", ACME)) == 4
                with pytest.raises(InvalidRequest, match="begin anew"):
                    await kept.responses.context("c", ACME)


async def test_input_items_come_in_pages(open_kept: Open) -> None:
    async with open_kept() as kept:
        three = KeptResponse(owner="acme", answer=response("r").answer, input=[message(f"m{n}", "x") for n in range(3)])
        kept.responses.keep_later(three)

        async def page(**asked: Any) -> tuple[list[str], bool]:
            items, more = await kept.responses.input_items("r", ACME, **{"after": None, "limit": 2, **asked})
            return [item["id"] for item in items], more

        assert await page() == (["m2", "m1"], True)
        assert await page(after="m1") == (["m0"], False)
        assert await page(order="asc", after="m0") == (["m1", "m2"], False)
        with pytest.raises(NotFound):
            await page(after="m9")


async def test_one_in_the_background_changes_from_the_status_that_it_has(open_kept: Open) -> None:
    async with open_kept() as kept:
        await kept.responses.keep(response("b", status="queued"))
        assert await kept.responses.move(response("b", status="in_progress"))
        assert [each.status for each in await kept.responses.unfinished()] == ["in_progress"]
        assert await kept.responses.move(response("b", status="cancelled"))
        assert not await kept.responses.move(response("b", status="completed"))
        assert (await kept.responses.get("b", ACME)).status == "cancelled"
        assert await kept.responses.unfinished() == []


async def test_the_oldest_of_an_owner_make_room_but_for_those_that_run(open_kept: Open) -> None:
    async with open_kept(number=3) as kept:
        await kept.responses.keep(response("z", owner="zeta"))
        for id, status in (("a", "queued"), ("b", "completed"), ("c", "completed"), ("d", "completed")):
            await kept.responses.keep(response(id, status=status))
        assert await kept_ids(kept, *"abcdz") == ["a", "c", "d", "z"]
    size = response("x", text="x" * 1000).to_row()["bytes"]
    async with open_kept(bytes=2 * size + 1000) as kept:
        for id in "efg":
            await kept.responses.keep(response(id, text="x" * 1000))
        assert await kept_ids(kept, *"acdefgz") == ["a", "f", "g", "z"]


async def test_nobodys_are_counted_together(open_kept: Open) -> None:
    async with open_kept(number=2) as kept:
        for id in "abc":
            await kept.responses.keep(response(id, owner=None))
        assert await kept_ids(kept, *"abc") == ["b", "c"]


async def test_what_has_expired_is_not_found_and_then_deleted(open_kept: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_kept(seconds=10) as kept:
        await kept.responses.keep(response("a"))
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 11)
        assert await kept_ids(kept, "a") == []
        await kept.delete_expired()
        monkeypatch.undo()
        assert await kept_ids(kept, "a") == []


async def test_what_is_too_large_is_not_kept_and_told(
    open_kept: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shelf, "MAX_BYTES", 1000)
    async with open_kept() as kept:
        with pytest.raises(QuotaExceeded):
            await kept.responses.keep(response("a", text="x" * 1000))
        for id, length in (("b", 1), ("c", 1000), ("d", 1)):
            kept.responses.keep_later(response(id, text="x" * length))
        assert await kept_ids(kept, *"bcd") == ["b", "d"]
        assert kept.lost() == 1
    assert "The response c is not kept" in caplog.text


async def test_a_full_disk_keeps_nothing_more(open_kept: Open) -> None:
    async with open_kept(spare=1 << 60) as kept:
        with pytest.raises(StorageFull):
            await kept.responses.keep(response("a"))
        kept.responses.keep_later(response("b"))
        assert await kept_ids(kept, "b") == []
        assert kept.lost() == 1


async def test_a_database_that_is_away_is_waited_for(open_kept: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_writer, "RETRY_SECONDS", 0.01)
    async with open_kept() as kept:
        back = away(kept, monkeypatch)
        kept.responses.keep_later(response("a"))
        await asyncio.sleep(0.05)
        back.set()
        assert await kept_ids(kept, "a") == ["a"]
        assert kept.lost() == 0


async def test_what_was_written_unheard_of_is_kept_once(open_kept: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_writer, "RETRY_SECONDS", 0.01)
    async with open_kept() as kept:
        id = (await kept.conversations.create(ACME, {}, [])).id
        writing, tries = kept.writer._database.writing, iter((True, False))

        @contextlib.asynccontextmanager
        async def lose_the_answer() -> AsyncIterator[Any]:
            async with writing() as connection:
                yield connection
            if next(tries, False):
                raise StoreUnavailable("gone after the commit")

        monkeypatch.setattr(kept.writer._database, "writing", lose_the_answer)
        kept.responses.keep_later(response("a"), conversation=id)
        assert await kept_ids(kept, "a") == ["a"]
        assert [item["id"] for item in await kept.conversations.items(id, ACME)] == ["in_a", "out_a"]
        assert kept.lost() == 0


async def test_no_more_waits_than_memory_is_meant_for(
    open_kept: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kept_writer, "MOST_WAITING", 2)
    monkeypatch.setattr(kept_writer, "RETRY_SECONDS", 0.01)
    async with open_kept() as kept:
        back = away(kept, monkeypatch)
        with caplog.at_level(logging.ERROR):
            for id in "abc":
                kept.responses.keep_later(response(id))
                await asyncio.sleep(0.02)
        with pytest.raises(StoreUnavailable):
            kept.responses.shelf.check_room()
        assert not kept.completions.keeps
        back.set()
        assert await kept_ids(kept, *"abc") == ["b", "c"]
        kept.responses.shelf.check_room()
        assert kept.lost() == 1 and kept.completions.keeps


async def test_completions_are_found_by_what_they_were_marked_with(open_kept: Open) -> None:
    async with open_kept() as kept:
        for id, metadata in (("a", {"k": "1", "x.y": 'z"'}), ("b", {"k": "2"}), ("c", {})):
            kept.completions.keep_later(id, partial(completion, id, metadata))

        async def found(access: Access = ACME, **wanted: Any) -> list[str]:
            page, _ = await kept.completions.page(Filter(**wanted), access, after=None, limit=10)
            return [each.id for each in page]

        assert await found() == ["a", "b", "c"]
        assert await found(ZETA) == []
        assert await found(metadata={"k": "1"}) == await found(metadata={"k": "1", "x.y": 'z"'}) == ["a"]
        assert await found(metadata={"k": "1", "x.y": "z"}) == await found(model="other") == []
        assert await found(created_after=6) == []
        assert await found(created_after=5, created_before=5, model="echo") == ["a", "b", "c"]
        await kept.completions.update("b", ACME, {"k": "1"})
        assert await found(metadata={"k": "1"}) == ["a", "b"]
        newest = await kept.completions.find(Filter(), ACME, limit=2)
        assert [each.id async for each in kept.completions.read(newest)] == ["b", "c"]


async def test_long_completions_come_in_shorter_pages(open_kept: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_kept() as kept:
        for id in "abcd":
            kept.completions.keep_later(id, partial(completion, id, {}))
        [(_, size), *_] = await kept.completions.find(Filter(), ACME, limit=None)
        monkeypatch.setattr(completions, "GROUP_BYTES", 2 * size)

        async def page(after: str | None, order: Any) -> tuple[list[str], bool]:
            found, more = await kept.completions.page(Filter(), ACME, after=after, limit=3, order=order)
            return [each.id for each in found], more

        assert await page(None, "asc") == (["a", "b"], True)
        assert await page("b", "asc") == (["c", "d"], False)
        assert await page(None, "desc") == (["d", "c"], True)
        everything = await kept.completions.find(Filter(), ACME, limit=None)
        assert [each.id async for each in kept.completions.read(everything)] == [*"abcd"]
        monkeypatch.setattr(completions, "GROUP_BYTES", 1)
        assert await page(None, "asc") == (["a"], True)


def completion(id: str, metadata: dict[str, str]) -> KeptCompletion:
    asked = {"messages": [{"role": "user", "content": "\0"}]}
    answer = {"id": id, "created": 5, "model": "echo", "choices": []}
    return KeptCompletion(owner="acme", metadata=metadata, asked=asked, answer=answer)


async def test_items_of_a_conversation_stay_in_order_and_come_once(open_kept: Open) -> None:
    async with open_kept() as kept:
        conversations = kept.conversations
        id = (await conversations.create(ACME, {}, [message("m1", "a")])).id
        kept.responses.keep_later(response("r"), conversation=id)
        again = KeptResponse(owner="acme", answer=response("s").answer, input=[message("out_r", "hi", "assistant")])
        kept.responses.keep_later(again, conversation=id)
        kept.responses.keep_later(response("t"), conversation="conv_gone")
        assert [item["id"] for item in await conversations.items(id, ACME)] == ["m1", "in_r", "out_r", "out_s"]
        assert await kept_ids(kept, "r", "s", "t") == ["r", "s", "t"]
        await conversations.delete(id, ACME)
        with pytest.raises(NotFound):
            await conversations.items(id, ACME)
        with pytest.raises(NotFound):
            await conversations.items((await conversations.create(ACME, {}, [])).id, ZETA)


def away(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Have no transaction write until the event is set."""
    back, writing = asyncio.Event(), kept.writer._database.writing

    @contextlib.asynccontextmanager
    async def refuse() -> AsyncIterator[Any]:
        if not back.is_set():
            raise StoreUnavailable("away")
        async with writing() as connection:
            yield connection

    monkeypatch.setattr(kept.writer._database, "writing", refuse)
    return back
