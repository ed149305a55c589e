"""Responses in the background from one server to the next, which begins again what the one before has not ended."""

import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.adapter_folders import write_adapter
from tests.server.api import checked_events
from tests.server.keys import ASK, KEYS, bearer
from tests.server.openai_schema import check
from tests.server.process import Kept, ServerProcess
from tests.server.responses.said import WEATHER, message, text_of, types_of
from tests.server.states import as_state
from tests.until import until

TEXT = "a text that takes its time"
ZETA = "secret-key-of-zeta"


class Server(Kept):
    """What tests ask of a server about its responses."""

    def __init__(self, server: ServerProcess, folder: Path, key: str) -> None:
        super().__init__(server, folder)
        self.http.headers.update(bearer(key))

    def ask(self, input: Any = TEXT, **body: Any) -> dict[str, Any]:
        reply = self.http.post("/v1/responses", json={"model": "echo", "input": input, **body})
        assert reply.status_code == 200, reply.text
        response: dict[str, Any] = reply.json()
        return response

    def begin(self, input: Any = TEXT, **body: Any) -> str:
        id: str = self.ask(input, background=True, **body)["id"]
        return id

    def begin_and_see(self, input: Any = TEXT, **body: Any) -> str:
        """Begun, and something of it is there."""
        id = self.begin(input, **body)
        until(lambda: text_of(self.look(id)))
        return id

    def look(self, id: str) -> dict[str, Any]:
        reply = self.http.get(f"/v1/responses/{id}")
        assert reply.status_code == 200, reply.text
        response: dict[str, Any] = reply.json()
        check("Response", response)
        return response

    def wait(self, id: str, status: str = "completed") -> dict[str, Any]:
        ended = until(lambda: found if (found := self.look(id))["status"] not in ("queued", "in_progress") else None)
        assert ended["status"] == status, ended
        return ended

    def watch(self, id: str, **query: Any) -> str:
        reply = self.http.get(f"/v1/responses/{id}", params={"stream": True, **query})
        assert reply.status_code == 200, reply.text
        return reply.text

    def end(self, how: int = signal.SIGKILL) -> None:
        self.server.signal(how)
        self.server.wait()


Start = Callable[..., Server]


@pytest.fixture
def start(start_echo: Callable[..., ServerProcess], tmp_path: Path) -> Iterator[Start]:
    """Starts a server on the state that the one before has left; `params` besides."""
    servers: list[Server] = []

    def start(*, delay: float = 0.0, max_requests: int | None = None, key: str = ASK, **params: Any) -> Server:
        process = start_echo(
            params={"state_dir": str(as_state(tmp_path / "state")), **params},
            faults={"token_delay": delay},
            engine={"max_requests": max_requests},
        )
        servers.append(Server(process, tmp_path / "state", key))
        until(process.is_ready)
        return servers[-1]

    yield start
    for server in servers:
        server.http.close()


def number_of(events: str) -> int:
    """Number of the last event."""
    return int(events.rpartition('"sequence_number":')[2].partition("}")[0].partition(",")[0])


def first_of(events: str) -> int:
    return int(events.partition('"sequence_number":')[2].partition("}")[0].partition(",")[0])


# ---- begun again


def test_what_ran_when_the_server_was_killed_is_made_by_the_next(start: Start, database_url: str) -> None:
    server = start(delay=0.05, database_url=database_url)
    begun = server.look(server.begin_and_see())
    server.end()
    server = start(database_url=database_url)
    done = server.wait(begun["id"])
    assert (text_of(done), done["created_at"]) == (TEXT, begun["created_at"])
    assert {name for name in begun if begun[name] != done[name]} == {"status", "output", "usage", "completed_at"}
    assert [item["id"] for item in done["output"]] == [item["id"] for item in begun["output"]]
    server.end()
    assert start(database_url=database_url).look(begun["id"]) == done


def test_what_a_server_could_not_end_in_its_time_is_left_to_the_next(start: Start) -> None:
    server = start(delay=0.05, shutdown_timeout=0.2)
    ids = [server.begin_and_see() for _ in range(2)]
    server.end(signal.SIGTERM)
    server = start()
    assert [text_of(server.wait(id)) for id in ids] == [TEXT, TEXT]


def test_a_server_that_ends_waits_for_what_it_can_end(start: Start) -> None:
    server = start(delay=0.01, shutdown_timeout=60)
    id = server.begin_and_see()
    server.end(signal.SIGTERM)
    assert text_of(start(delay=100).wait(id)) == TEXT


def test_a_request_means_the_same_the_second_time(start: Start) -> None:
    server = start(delay=0.05)
    first = server.ask("Hello.", instructions="Be short.")["id"]
    asked = {
        "previous_response_id": first,
        "instructions": "Be kind.",
        "tools": [WEATHER],
        "tool_choice": "none",
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "reasoning": {"effort": "low"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 1,
        "truncation": "auto",
        "metadata": {"of": "me"},
        "max_output_tokens": 12,
        "seed": 3,
    }
    once = server.ask([message("user", "one"), message("assistant", "two"), message("user", TEXT)], **asked)
    id = server.begin_and_see([message("user", "one"), message("assistant", "two"), message("user", TEXT)], **asked)
    server.end()
    again = start().wait(id, "incomplete")
    others = again.keys() - {"created_at"}  # which may be the same second
    assert {name for name in others if once[name] != again[name]} == {"id", "background", "output"}
    [said], [said_again] = once["output"], again["output"]
    assert said["content"] == said_again["content"] and said["content"][0]["logprobs"]


def test_its_conversation_gets_it_once(start: Start) -> None:
    server = start(delay=0.05)
    conversation = server.client.with_options(api_key=ASK).conversations.create().id
    id = server.begin_and_see(conversation=conversation)
    server.end()
    server = start()
    server.wait(id)
    items = server.http.get(f"/v1/conversations/{conversation}/items", params={"order": "asc"}).json()["data"]
    assert [item["content"][0]["text"] for item in items] == [TEXT, TEXT]


def test_more_than_the_engine_takes_wait_for_their_turn(start: Start) -> None:
    server = start(delay=0.05)
    ids = [server.begin_and_see(f"{number} {TEXT}") for number in range(4)]
    server.end()
    server = start(max_requests=1)
    assert [text_of(server.wait(id)) for id in ids] == [f"{number} {TEXT}" for number in range(4)]


# ---- its events


def test_its_events_begin_anew_behind_all_that_were_told(start: Start) -> None:
    server = start(delay=0.05)
    id = server.begin_and_see()
    with server.http.stream("GET", f"/v1/responses/{id}", params={"stream": True}) as reply:
        chunks = reply.iter_text()
        told = "".join(next(chunks) for _ in range(3))
        server.end()
    server = start(delay=0.02)
    events = server.watch(id, starting_after=number_of(told))
    found = checked_events(events, first=first_of(events))
    assert types_of(found)[:3] == ["created", "queued", "in_progress"] and types_of(found)[-1] == "completed"
    assert "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta") == TEXT
    assert found[-1]["response"] == server.look(id)
    assert server.watch(id) == events and first_of(events) > number_of(told)
    assert first_of(server.watch(id, starting_after=first_of(events) + 4)) == first_of(events) + 5


def test_who_watches_as_the_server_ends_is_let_go(start: Start) -> None:
    server = start(delay=0.05, shutdown_timeout=0.2)
    id = server.begin_and_see()
    with server.http.stream("GET", f"/v1/responses/{id}", params={"stream": True}) as reply:
        server.server.signal(signal.SIGTERM)
        told = "".join(reply.iter_text())
    server.server.wait()
    assert "response.output_text.delta" in told and "response.failed" not in told


# ---- what is not begun again, and what waits


def test_a_response_that_outlives_no_server_has_failed_in_the_end(start: Start) -> None:
    server = start(delay=0.05)
    id = server.begin_and_see()
    for _ in range(2):
        server.end()
        server = start(delay=0.05)
        until(lambda: text_of(server.look(id)))  # noqa: B023 (called before the loop gives it another value)
    server.end()
    failed = start().look(id)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert "died 3 times" in failed["error"]["message"]


def test_ends_in_order_are_no_attempts(start: Start) -> None:
    server = start(delay=0.05, shutdown_timeout=0.1)
    id = server.begin_and_see()
    for _ in range(3):
        server.end(signal.SIGTERM)
        server = start(delay=0.05, shutdown_timeout=0.1)
        until(lambda: text_of(server.look(id)))  # noqa: B023
    assert text_of(server.wait(id)) == TEXT


def test_last_attempts_are_made_one_by_one(start: Start, tmp_path: Path) -> None:
    server = start(delay=0.05)
    ids = [server.begin_and_see() for _ in range(3)]
    server.end()
    with sqlite3.connect(tmp_path / "state" / "store" / "tuneserve.sqlite3") as database:
        database.execute("UPDATE kept_responses SET request = json_set(request, '$.begun', 2)")
    server = start(delay=0.02)
    seen = []
    for id in ids:
        until(lambda: server.look(id)["status"] != "queued")  # noqa: B023
        seen.append([server.look(other)["status"] for other in ids])
    assert all(statuses.count("in_progress") <= 1 for statuses in seen)
    assert [text_of(server.wait(id)) for id in ids] == [TEXT] * 3


def test_what_was_cancelled_stays_so(start: Start) -> None:
    server = start(delay=0.05)
    id = server.begin_and_see()
    cancelled = server.http.post(f"/v1/responses/{id}/cancel").json()
    server.end()
    assert start().look(id) == cancelled and cancelled["status"] == "cancelled"


def test_one_that_waits_to_be_begun_again_can_be_cancelled_and_deleted(start: Start) -> None:
    server = start(delay=0.05)
    ids = [server.begin_and_see() for _ in range(2)]
    server.end()
    server = start(max_requests=0)
    assert server.look(ids[0])["status"] == "queued"
    assert server.http.post(f"/v1/responses/{ids[0]}/cancel").json()["status"] == "cancelled"
    assert server.http.delete(f"/v1/responses/{ids[1]}").status_code == 200
    server.end()
    server = start()
    assert server.look(ids[0])["status"] == "cancelled"
    assert server.http.get(f"/v1/responses/{ids[1]}").status_code == 404


@pytest.mark.parametrize("gone", ["adapter", "previous"])
def test_what_is_refused_by_now_has_failed_and_says_why(start: Start, tmp_path: Path, gone: str) -> None:
    write_adapter(tmp_path / "short")
    server = start(delay=0.05, adapters=(str(tmp_path / "short"),))
    previous = server.ask("Hello.")["id"]
    asked = {"adapter": {"model": "short"}, "previous": {"previous_response_id": previous}}[gone]
    id = server.begin_and_see(**asked)
    if gone == "previous":
        server.http.delete(f"/v1/responses/{previous}")
    server.end()
    failed = start(delay=0.05).wait(id, "failed")
    assert {"adapter": "'short'", "previous": previous}[gone] in failed["error"]["message"]


def test_a_keys_limits_hold_for_what_is_begun_again(start: Start) -> None:
    keys = (*KEYS, f"zeta=infer:{ZETA}")
    server = start(delay=0.05, api_key=keys)
    ids = [server.begin_and_see() for _ in range(3)]
    server.end()
    server = start(delay=0.02, api_key=keys, key_max_running_requests=1)
    until(lambda: server.look(ids[0])["status"] != "queued")
    assert server.http.get(f"/v1/responses/{ids[0]}", headers=bearer(ZETA)).status_code == 404
    statuses = [server.look(id)["status"] for id in ids]
    assert statuses.count("in_progress") <= 1
    assert [text_of(server.wait(id)) for id in ids] == [TEXT] * 3


def test_one_of_a_server_that_kept_no_requests_has_failed(start: Start, tmp_path: Path) -> None:
    server = start(delay=0.05)
    id = server.begin_and_see()
    server.end()
    with sqlite3.connect(tmp_path / "state" / "store" / "tuneserve.sqlite3") as database:
        database.execute("UPDATE kept_responses SET request = NULL")
    failed = start().look(id)
    assert failed["status"] == "failed" and "ask again" in failed["error"]["message"]
