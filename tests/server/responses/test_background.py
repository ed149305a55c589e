"""Responses in the background: begun, looked at, watched and cancelled."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from engines.echo import EchoEngine
from engines.errors import EngineFailure
from engines.types import GenerationRequest, TokenOutput
from server.http import sse
from server.responses import background
from tests.server.api import Api, Response, checked_events, succeeded
from tests.server.openai_schema import check
from tests.server.responses.said import message, text_of, types_of
from tests.until import until


class PausingEngine(EchoEngine):
    """Gives two tokens, and the rest once it may go on; or fails then."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = threading.Event()
        self.fails = False

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        number = 0
        async for step in super().generate(request):
            yield step
            number += 1
            while number == 2 and not self.may_go_on.is_set():
                await asyncio.sleep(0.001)
            if number == 2 and self.fails:
                raise EngineFailure("A secret of the engine.")


@pytest.fixture
def engine() -> PausingEngine:
    return PausingEngine()


@pytest.fixture
def api(make_api: Callable[..., Api], engine: PausingEngine) -> Api:
    return make_api(engine=engine)


def begin(api: Api, input: Any = "hello", **body: Any) -> dict[str, Any]:
    return api.respond(input, background=True, **body)


def look(api: Api, id: str) -> dict[str, Any]:
    response = succeeded(api.http.get(f"/v1/responses/{id}"))
    check("Response", response)
    return response


def wait_for(api: Api, id: str, status: str) -> dict[str, Any]:
    return until(lambda: found if (found := look(api, id))["status"] == status else None)


def watch(api: Api, id: str, **query: Any) -> list[dict[str, Any]]:
    reply = api.http.get(f"/v1/responses/{id}", params={"stream": True, **query})
    assert reply.status_code == 200, reply.text
    first = query.get("starting_after", -1) + 1
    return checked_events(reply.text, first=first)


def cancel(api: Api, id: str) -> Response:
    return api.http.post(f"/v1/responses/{id}/cancel")


def test_a_response_is_begun_and_looked_at_until_it_has_ended(api: Api, engine: PausingEngine) -> None:
    begun = begin(api)
    assert (begun["status"], begun["background"], begun["output"]) == ("queued", True, [])
    running = until(lambda: found if text_of(found := look(api, begun["id"])) == "he" else None)
    assert (running["status"], running["output"][0]["status"]) == ("in_progress", "in_progress")
    engine.may_go_on.set()
    done = wait_for(api, begun["id"], "completed")
    assert text_of(done) == "hello" and done["usage"]["output_tokens"] == 6
    assert {name for name in begun if begun[name] != done[name]} == {"status", "output", "usage", "completed_at"}


def test_the_next_response_goes_on_from_it(api: Api, engine: PausingEngine) -> None:
    engine.may_go_on.set()
    first = begin(api, "one")
    wait_for(api, first["id"], "completed")
    follow = api.respond("two", previous_response_id=first["id"])
    assert follow["usage"]["input_tokens"] > api.respond("two")["usage"]["input_tokens"]
    listed = succeeded(api.http.get(f"/v1/responses/{first['id']}/input_items"))["data"]
    assert [item["content"][0]["text"] for item in listed] == ["one"]


def test_its_events_begin_as_it_is_queued(api: Api, engine: PausingEngine) -> None:
    engine.may_go_on.set()
    events = api.response_events("hello", background=True)
    assert types_of(events)[:3] == ["created", "queued", "in_progress"]
    assert types_of(events)[-1] == "completed"
    assert [event["response"]["status"] for event in events[:3]] == ["queued", "queued", "in_progress"]


def test_events_are_watched_from_where_the_client_was(api: Api, engine: PausingEngine) -> None:
    engine.may_go_on.set()
    id = begin(api)["id"]
    events = watch(api, id)
    assert types_of(events)[-1] == "completed" and events[-1]["response"] == look(api, id)
    assert watch(api, id, starting_after=5) == events[6:]
    assert watch(api, id, starting_after=1000) == []


def test_it_goes_on_without_its_client(api: Api, engine: PausingEngine) -> None:
    body = {"model": "echo", "input": "hello", "background": True, "stream": True}
    threading.Timer(0.05, engine.may_go_on.set).start()
    with api.http.stream("POST", "/v1/responses", json=body) as reply:
        lines = reply.iter_lines()
        assert next(lines) == "event: response.created"
        id = next(lines).split('"id":"')[1].split('"')[0]
    assert text_of(wait_for(api, id, "completed")) == "hello"


def test_a_cancelled_response_keeps_what_it_has(api: Api, engine: PausingEngine) -> None:
    id = begin(api)["id"]
    until(lambda: text_of(look(api, id)) == "he")
    cancelled = succeeded(cancel(api, id))
    check("Response", cancelled)
    assert (cancelled["status"], text_of(cancelled)) == ("cancelled", "he")
    assert cancelled["output"][0]["status"] == "incomplete"
    assert look(api, id) == cancelled == succeeded(cancel(api, id))
    assert types_of(watch(api, id))[-1] == "output_text.delta"


def test_what_has_ended_is_not_cancelled(api: Api, engine: PausingEngine) -> None:
    engine.may_go_on.set()
    id = begin(api)["id"]
    done = wait_for(api, id, "completed")
    assert succeeded(cancel(api, id)) == done
    refused = cancel(api, api.respond("hello")["id"])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_id")


def test_a_response_that_is_deleted_ends(api: Api, engine: PausingEngine) -> None:
    id = begin(api)["id"]
    succeeded(api.http.delete(f"/v1/responses/{id}"))
    assert api.http.get(f"/v1/responses/{id}").status_code == 404
    until(lambda: engine.stats().running == 0)


def test_a_response_that_fails_tells_why(api: Api, engine: PausingEngine) -> None:
    engine.fails = True
    engine.may_go_on.set()
    id = begin(api)["id"]
    failed = wait_for(api, id, "failed")
    assert failed["error"]["code"] == "server_error" and "secret" not in failed["error"]["message"]
    assert types_of(watch(api, id))[-2:] == ["error", "failed"]


def test_who_reads_too_slowly_is_left_behind_and_the_response_goes_on(
    api: Api, engine: PausingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = begin(api)["id"]
    with monkeypatch.context() as patch:
        patch.setattr(sse, "MOST_UNSENT", 0)
        assert api.http.get(f"/v1/responses/{id}", params={"stream": True}).status_code != 200
    engine.may_go_on.set()
    assert text_of(wait_for(api, id, "completed")) == "hello"


def test_it_is_kept_where_it_can_be_looked_at(api: Api, make_api: Callable[..., Api]) -> None:
    refusal = api.refused_response(background=True, store=False)
    assert (refusal.status, refusal.param) == (400, "background")
    refusal = make_api(without_state=True).refused_response(background=True)
    assert (refusal.status, refusal.code, refusal.param) == (400, "unsupported_parameter", "background")


def test_refusals_come_before_it_is_begun(api: Api) -> None:
    assert api.refused_response(background=True, input=[message("user", "x" * 20_000)]).param == "input"
    assert api.refused_response(background=True, model="nobody").status == 404


def test_the_events_of_the_last_that_ended_can_be_watched(
    api: Api, engine: PausingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "MOST_WATCHED", 2)
    engine.may_go_on.set()
    ids = []
    for _ in range(3):
        ids.append(begin(api)["id"])
        wait_for(api, ids[-1], "completed")
        watch(api, ids[-1])
    statuses = [api.http.get(f"/v1/responses/{id}", params={"stream": True}).status_code for id in ids]
    assert statuses == [400, 200, 200]


def test_more_than_may_run_are_refused(api: Api, engine: PausingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MOST_RUNS", 1)
    id = begin(api)["id"]
    refusal = api.refused_response(background=True)
    assert (refusal.status, refusal.code) == (429, "rate_limit_exceeded")
    engine.may_go_on.set()
    wait_for(api, id, "completed")


def test_only_those_in_the_background_are_watched(api: Api, engine: PausingEngine) -> None:
    engine.may_go_on.set()
    id = api.respond("hello")["id"]
    for query, param in (({"stream": True}, "stream"), ({"starting_after": 3}, "starting_after")):
        reply = api.http.get(f"/v1/responses/{id}", params=query)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
