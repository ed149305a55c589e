"""What one key may take: so much at a time, a minute and of one request, and nothing of what is another's."""

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from engines.echo import EchoEngine, EchoFaults
from engines.params.deploy import DeployParams
from server.batches import run
from server.batches.lines import read_plan
from server.commands.deploy import WrongAccess, check_limits
from server.http.keys.keys import Keys
from server.inference import rate_limits
from server.inference.rate_limits import duration
from tests.server.client import ReadyClient, echo_client
from tests.until import until

ONE, OTHER = "one-of-sixteen-letters", "other-of-sixteen-letters"
HELLO: dict[str, Any] = {"model": "echo", "prompt": "hello"}
"""Five tokens for the echo engine, which answers with as many and the one that ends."""
CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
EMBED: dict[str, Any] = {"model": "echo", "input": "hello"}
Clock = Callable[[float], None]


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """For limits time stands still, but for what a test lets pass."""
    now = [1000.0]
    monkeypatch.setattr(rate_limits, "monotonic", lambda: now[0])

    def go_on(seconds: float) -> None:
        now[0] += seconds

    return go_on


@contextlib.contextmanager
def serving(
    tmp_path: Path, line: str = "", *, faults: EchoFaults | None = None, **params: Any
) -> Iterator[ReadyClient]:
    """A server with the keys of `one` and `other`; `line` is what the file says after the first."""
    file = tmp_path / "keys"
    file.write_text(f"one=infer:{ONE} {line}\nother=infer:{OTHER}\n")
    file.chmod(0o600)
    with echo_client(EchoEngine(faults=faults), api_key_file=str(file), **params) as client:
        yield client


def ask(client: ReadyClient, body: dict[str, Any] = HELLO, key: str = ONE, path: str = "/v1/completions") -> Any:
    return client.post(path, json=body, headers={"authorization": f"Bearer {key}"})


def left(answer: Any, what: str) -> tuple[str, ...]:
    return tuple(answer.headers[f"x-ratelimit-{each}-{what}"] for each in ("limit", "remaining", "reset"))


def test_without_limits_no_answer_speaks_of_any(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        assert not [name for name in ask(client).headers if name.startswith("x-ratelimit")]


def test_requests_a_minute_are_counted_down_and_come_back_evenly(tmp_path: Path, pass_time: Clock) -> None:
    with serving(tmp_path, key_requests_per_minute=2) as client:
        assert [left(ask(client), "requests") for _ in range(2)] == [("2", "1", "30s"), ("2", "0", "1m0s")]
        refused = ask(client)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert left(refused, "requests") == ("2", "0", "1m0s")
        pass_time(30)
        assert ask(client).status_code == 200
        assert ask(client).status_code == 429


def test_tokens_of_prompts_and_outputs_are_counted_down(tmp_path: Path, pass_time: Clock) -> None:
    with serving(tmp_path, key_tokens_per_minute=60) as client:
        first = ask(client, HELLO | {"max_tokens": 3})
        assert first.json()["usage"]["total_tokens"] == 8
        second = ask(client, HELLO | {"max_tokens": 3})
        assert left(second, "tokens")[:2] == ("60", "44")


def test_a_request_that_generates_more_than_is_left_is_answered_and_paid_for_later(
    tmp_path: Path, pass_time: Clock
) -> None:
    with serving(tmp_path, key_tokens_per_minute=6) as client:
        assert ask(client).json()["usage"]["total_tokens"] > 6
        refused = ask(client)
        assert refused.status_code == 429
        assert left(refused, "tokens")[1] == "0"
        seconds = int(refused.headers["retry-after"])
        assert seconds > 50
        pass_time(seconds - 2)
        assert ask(client).status_code == 429
        pass_time(2)
        assert ask(client).status_code == 200


def test_a_prompt_longer_than_a_minute_allows_waits_for_a_whole_one(tmp_path: Path, pass_time: Clock) -> None:
    with serving(tmp_path, key_tokens_per_minute=3) as client:
        assert ask(client, HELLO | {"max_tokens": 1}).status_code == 200
        assert ask(client, HELLO | {"max_tokens": 1}).status_code == 429
        pass_time(180)
        assert ask(client, HELLO | {"max_tokens": 1}).status_code == 200


def test_what_one_key_takes_another_one_has(tmp_path: Path, pass_time: Clock) -> None:
    with serving(tmp_path, key_requests_per_minute=1) as client:
        assert [ask(client, key=key).status_code for key in (ONE, ONE, OTHER, OTHER)] == [200, 429, 200, 429]


def test_a_line_of_the_file_sets_other_limits_for_its_key(tmp_path: Path, pass_time: Clock) -> None:
    with serving(tmp_path, "requests_per_minute=3", key_requests_per_minute=1) as client:
        assert [ask(client).status_code for _ in range(4)] == [200, 200, 200, 429]
        assert [ask(client, key=OTHER).status_code for _ in range(2)] == [200, 429]


def test_keys_of_one_name_share_what_it_may_take(tmp_path: Path, pass_time: Clock) -> None:
    third = "third-of-sixteen-letters"
    with serving(tmp_path, f"requests_per_minute=1\none=infer:{third}") as client:
        assert [ask(client, key=key).status_code for key in (ONE, third, OTHER)] == [200, 429, 200]


def test_a_file_that_is_read_again_changes_the_limits_at_once(tmp_path: Path, pass_time: Clock) -> None:
    with serving(tmp_path, "requests_per_minute=1") as client:
        assert [ask(client).status_code for _ in range(2)] == [200, 429]
        (tmp_path / "keys").write_text(f"one=infer:{ONE} requests_per_minute=2")
        client.parts[Keys].reload()
        assert [ask(client).status_code for _ in range(3)] == [200, 200, 429]


def test_the_tokens_of_a_batch_are_its_owners_and_its_requests_do_not_count(tmp_path: Path, pass_time: Clock) -> None:
    with serving(tmp_path, key_tokens_per_minute=60, key_requests_per_minute=1) as client:
        id = batch(client, ONE, [HELLO | {"max_tokens": 3}])
        until(lambda: get(client, ONE, id)["status"] == "completed")

        answer = ask(client, HELLO | {"max_tokens": 3})

        assert left(answer, "tokens")[:2] == ("60", "44")
        assert left(answer, "requests")[:2] == ("1", "0")


def test_batches_wait_neither_for_what_another_may_not_have_yet_nor_for_another_s_queue(tmp_path: Path) -> None:
    with serving(tmp_path, "tokens_per_minute=5") as client:
        waiting = [batch(client, ONE, [HELLO] * 100) for _ in range(20)]
        until(lambda: any(get(client, ONE, each)["request_counts"]["completed"] for each in waiting))
        other = batch(client, OTHER, [HELLO] * 3)
        until(lambda: get(client, OTHER, other)["status"] == "completed")
        assert all(get(client, ONE, each)["status"] in ("validating", "in_progress") for each in waiting)


def test_the_inputs_of_batches_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, together = threading.Lock(), []

    def read(*given: Any) -> Any:
        if not reading.acquire(blocking=False):
            together.append(given)
            return read_plan(*given)
        try:
            time.sleep(0.2)
            return read_plan(*given)
        finally:
            reading.release()

    monkeypatch.setattr(run, "read_plan", read)
    with serving(tmp_path) as client:
        batches = [(key, batch(client, key, [HELLO])) for key in (ONE, OTHER, ONE, OTHER)]
        for key, id in batches:
            until(lambda key=key, id=id: get(client, key, id)["status"] == "completed")  # type: ignore[misc]
    assert together == []


def batch(client: ReadyClient, key: str, bodies: list[dict[str, Any]]) -> str:
    """The id of a new batch of completions."""
    head = {"authorization": f"Bearer {key}"}
    line = {"method": "POST", "url": "/v1/completions"}
    lines = "\n".join(json.dumps(line | {"custom_id": str(n), "body": body}) for n, body in enumerate(bodies))
    form: dict[str, Any] = {"files": {"file": ("b.jsonl", lines)}, "data": {"purpose": "batch"}}
    body = {"endpoint": "/v1/completions", "completion_window": "24h"}
    body["input_file_id"] = client.post("/v1/files", **form, headers=head).json()["id"]
    return str(client.post("/v1/batches", json=body, headers=head).json()["id"])


def get(client: ReadyClient, key: str, id: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.get(f"/v1/batches/{id}", headers={"authorization": f"Bearer {key}"}).json()
    return answer


def test_limits_for_keys_stop_a_start_without_any() -> None:
    params = DeployParams(model="m", key_max_outputs=2)
    with pytest.raises(WrongAccess, match="--key_max_outputs is a limit for each key, and there are no keys"):
        check_limits(Keys(), params)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", HELLO), ("/v1/chat/completions", CHAT), ("/v1/embeddings", EMBED)],
)
def test_the_limits_hold_for_whatever_the_engine_is_asked(
    tmp_path: Path, pass_time: Clock, path: str, body: dict[str, Any]
) -> None:
    with serving(tmp_path, key_requests_per_minute=1, key_tokens_per_minute=100) as client:
        answers = [ask(client, body, path=path) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert int(left(answers[1], "tokens")[1]) < 100


def test_more_requests_at_a_time_than_the_key_may_have_are_refused_until_one_has_ended(tmp_path: Path) -> None:
    with serving(tmp_path, faults=EchoFaults(token_delay=0.2), key_max_running_requests=1) as client:
        headers = {"authorization": f"Bearer {ONE}"}
        with client.stream("POST", "/v1/completions", json=HELLO | {"stream": True}, headers=headers) as running:
            refused = ask(client, HELLO | {"max_tokens": 1})
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert ask(client, HELLO | {"max_tokens": 1}, key=OTHER).status_code == 200
            for _ in running.iter_lines():
                pass
        assert ask(client, HELLO | {"max_tokens": 1}).status_code == 200


def test_one_request_may_not_ask_for_more_outputs_than_its_key_may_have(tmp_path: Path) -> None:
    with serving(tmp_path, key_max_outputs=4) as client:
        assert ask(client, HELLO | {"n": 4}).status_code == 200
        assert ask(client, HELLO | {"n": 2, "prompt": ["a", "b"]}).status_code == 200
        refused = ask(client, HELLO | {"n": 3, "prompt": ["a", "b"]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
        refused = ask(client, HELLO | {"num_beams": 5})
        assert (refused.status_code, "asks for 5 outputs" in refused.text) == (400, True)


def test_a_request_that_is_refused_for_something_else_gives_its_place_back(tmp_path: Path) -> None:
    with serving(tmp_path, key_max_running_requests=1) as client:
        assert [ask(client, HELLO | {"n": 0}).status_code for _ in range(2)] == [400, 400]
        assert [ask(client, HELLO | {"model": "nope"}).status_code for _ in range(2)] == [404, 404]
        assert ask(client).status_code == 200


def test_refusals_are_counted_by_their_reason(tmp_path: Path) -> None:
    with serving(tmp_path, key_requests_per_minute=1) as client:
        ask(client)
        ask(client)
        text = client.get("/metrics").text
        assert re.search(r'tuneserve:admission_rejections_total\{.*reason="rate_limit"\} 1\.0', text)


def test_openais_sdk_reads_the_headers_and_raises_its_own_error(tmp_path: Path) -> None:
    with serving(tmp_path, key_requests_per_minute=1) as client:
        sdk = openai.OpenAI(api_key=ONE, base_url=f"{client.base_url}/v1", http_client=client, max_retries=0)
        answer = sdk.completions.with_raw_response.create(**HELLO)
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError):
            sdk.completions.create(**HELLO)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.02, "20ms"), (0.9991, "1s"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s"), (-1, "0ms")],
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
