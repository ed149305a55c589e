"""Chat completions that asked to be kept, with OpenAI's own client: found, changed, deleted, and made data of."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.api import Api, api_of, succeeded
from tests.server.client import ReadyClient, echo_client
from tests.server.fine_tuning.conftest import Start, start
from tests.server.openai_schema import check
from tests.server.process import Kept, ServerProcess
from tests.server.states import as_state
from tests.until import until
from training.data.messages import messages_of

__all__ = ["start"]

PATH = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def said(content: Any = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": content}], "store": True, **fields}


@pytest.fixture
def kept(start_echo: Callable[..., ServerProcess], tmp_path: Path) -> Kept:
    server = start_echo(params={"state_dir": str(as_state(tmp_path)), "keep_completions": True})
    until(server.is_ready)
    return Kept(server, tmp_path)


@pytest.fixture
def http() -> Iterator[ReadyClient]:
    with echo_client(keep_completions=True) as client:
        yield client


def ids(http: Any, **query: Any) -> list[str]:
    return [each["id"] for each in succeeded(http.get(PATH, params=query))["data"]]


def chunks_of(reply: Any) -> list[dict[str, Any]]:
    lines = [line for line in reply.text.split("\n\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_openais_client_finds_changes_and_deletes_what_it_had_kept(kept: Kept) -> None:
    completions = kept.client.chat.completions
    made = [
        completions.create(
            model="echo", messages=[{"role": "user", "content": text}], store=True, metadata={"for": text}
        )
        for text in ("one", "two", "three")
    ]
    completions.create(model="echo", messages=[{"role": "user", "content": "not kept"}])
    assert [each.id for each in completions.list(limit=2)] == [each.id for each in made], "the client turns pages"
    assert [each.id for each in completions.list(order="desc")] == [each.id for each in reversed(made)]
    assert [each.id for each in completions.list(metadata={"for": "two"})] == [made[1].id]
    assert list(completions.list(model="another")) == []

    found = completions.retrieve(made[0].id)
    assert (found.choices, found.usage, found.metadata) == (made[0].choices, made[0].usage, {"for": "one"})
    assert completions.update(found.id, metadata={"rating": "good"}).metadata == {"rating": "good"}
    assert [each.id for each in completions.list(metadata={"rating": "good"})] == [found.id]
    [message] = completions.messages.list(found.id)
    assert (message.id, message.role, message.content) == (f"{found.id}-0", "user", "one")

    assert completions.delete(found.id).deleted
    with pytest.raises(openai.NotFoundError):
        completions.retrieve(found.id)


def test_a_call_that_came_back_without_arguments_is_kept_with_none(http: ReadyClient) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "now"}}
    asked = [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    succeeded(http.post(PATH, json=said() | {"messages": asked}))
    file = succeeded(http.post(f"{PATH}/export", json={"purpose": "fine-tune"}))["id"]
    [row] = http.get(f"/v1/files/{file}/content").text.splitlines()
    called = json.loads(row)["messages"][1]["tool_calls"][0]["function"]
    assert called == {"name": "now", "arguments": ""}


def test_kept_completions_are_as_openai_describes_them(http: ReadyClient) -> None:
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "time?"}]
    answer = succeeded(
        http.post(PATH, json=said(parts, tools=TOOLS, logprobs=True, temperature=0, metadata={"a": "b"}))
    )
    page = succeeded(http.get(PATH))
    check("ChatCompletionList", page)
    [shown] = page["data"]
    assert {name: shown[name] for name in answer} == answer
    assert (shown["metadata"], shown["tools"], shown["temperature"], shown["seed"]) == ({"a": "b"}, TOOLS, 0, None)
    messages = succeeded(http.get(f"{PATH}/{answer['id']}/messages"))
    assert (messages["data"][0]["content"], messages["data"][0]["content_parts"]) == ("What time?", parts)
    as_assistants = [{**each, "role": "assistant"} for each in messages["data"]]  # the description knows no other role
    check("ChatCompletionMessageList", {**messages, "data": as_assistants})
    check("CreateChatCompletionResponse", succeeded(http.post(f"{PATH}/{answer['id']}", json={"metadata": None})))
    check("ChatCompletionDeleted", succeeded(http.delete(f"{PATH}/{answer['id']}")))


def test_a_stream_is_kept_as_if_it_had_not_been_one(http: ReadyClient) -> None:
    for body in (said(), said(CALL, tools=TOOLS, logprobs=True, top_logprobs=1, n=2)):
        whole = succeeded(http.post(PATH, json=body))
        id = chunks_of(http.post(PATH, json=body | {"stream": True}))[0]["id"]
        shown = succeeded(http.get(f"{PATH}/{id}"))
        assert without_call_ids(shown["choices"]) == without_call_ids(whole["choices"])
        assert shown["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_a_kept_stream_leaves_reasoning_out_as_any_other_does() -> None:
    text, stop = "<think>\nhm, well\n</think>\n\nHello.", "l\n</think>\n\nHe!"  # held back: one chunk has both
    asked = {"include_reasoning": False, "stream": True, "stop": stop}
    with echo_client(keep_completions=True, reasoning_parser="deepseek_r1") as http:
        kept, plain = (
            chunks_of(http.post(PATH, json=said(text, **asked, store=store, seed=1))) for store in (True, False)
        )
        assert [each["choices"] for each in kept] == [each["choices"] for each in plain]
        (choice,) = succeeded(http.get(f"{PATH}/{kept[0]['id']}"))["choices"]
        assert (choice["message"]["content"], "reasoning" in choice["message"]) == ("Hello.", False)


def without_call_ids(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for choice in choices:
        for call in choice["message"].get("tool_calls", ()):
            call["id"] = ""
    return choices


@pytest.fixture
def start_keeping(start_echo: Callable[..., ServerProcess], tmp_path: Path) -> Callable[..., ServerProcess]:
    def start(**faults: Any) -> ServerProcess:
        server = start_echo(params={"state_dir": str(as_state(tmp_path)), "keep_completions": True}, faults=faults)
        until(server.is_ready)
        return server

    return start


def test_a_stream_that_its_client_leaves_is_not_kept(start_keeping: Callable[..., ServerProcess]) -> None:
    with api_of(start_keeping(token_delay=0.02)) as api:
        with api.streaming("echo", "x" * 500, store=True) as pieces:
            next(pieces)
        after = api.chat("after", store=True)["id"]
        assert ids(api.http) == [after]


def test_an_answer_that_breaks_off_is_not_kept(start_keeping: Callable[..., ServerProcess]) -> None:
    with api_of(start_keeping(die_after=3)) as api:
        assert api.post(PATH, **said("x" * 50)).status_code >= 500
        assert ids(api.http) == []


def test_what_was_answered_is_kept_where_the_server_ends_at_once(start_keeping: Callable[..., ServerProcess]) -> None:
    server = start_keeping()
    with api_of(server) as api:
        made = [api.chat(str(number), store=True)["id"] for number in range(20)]
    server.signal()
    server.wait()
    with api_of(start_keeping()) as api:
        assert ids(api.http, limit=100) == made


@pytest.mark.parametrize("params", [{}, {"keep_completions": True, "without_state": True}])
def test_a_server_that_keeps_none_answers_and_says_so(params: dict[str, Any]) -> None:
    with echo_client(**params) as http:
        reply = http.post(PATH, json=said())
        assert (reply.status_code, reply.headers["x-ignored-fields"]) == (200, "store")
        assert "x-ignored-fields" not in http.post(PATH, json=said(store=False)).headers
        if not params:
            assert ids(http) == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_whose_disk_is_full_answers_and_says_that_it_keeps_nothing(stream: bool) -> None:
    with echo_client(keep_completions=True, disk_reserve=2**40) as http:
        reply = http.post(PATH, json=said(stream=stream))
        assert (reply.status_code, reply.headers["x-ignored-fields"]) == (200, "store")
        assert ids(http) == []


def test_filters_hold_whatever_is_in_a_key(http: ReadyClient) -> None:
    odd = {'a"b': "1", "c.d": "2", "e'f": "%_"}
    id = succeeded(http.post(PATH, json=said(metadata=odd)))["id"]
    succeeded(http.post(PATH, json=said(metadata={"c": "2"})))
    for key, value in odd.items():
        assert ids(http, **{f"metadata[{key}]": value}) == [id]
        assert ids(http, **{f"metadata[{key}]": value + "x"}) == []
    assert ids(http, **{f"metadata[{key}]": value for key, value in odd.items()}) == [id]


# ---- data


def lines(http: Any, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in http.get(f"/v1/files/{file}/content").text.splitlines()]


def test_kept_completions_become_a_file_that_a_fine_tuning_job_takes(start: Start) -> None:
    with start(keep_completions=True) as api:
        for text in ("one", "two"):
            api.chat(text, store=True, metadata={"rating": "good"})
        api.chat(CALL, store=True, metadata={"rating": "good"}, tools=TOOLS)
        api.chat("poor", store=True, metadata={"rating": "bad"})
        api.chat("cut short", store=True, metadata={"rating": "good"}, max_tokens=2)
        file = succeeded(api.post(f"{PATH}/export", purpose="fine-tune", metadata={"rating": "good"}))
        check("OpenAIFile", file)
        assert (file["purpose"], file["filename"]) == ("fine-tune", "completions.jsonl")
        one, two, call = lines(api.http, file["id"])
        assert one == {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "one"}]}
        assert two["messages"][1]["content"] == "two"
        assert (call["tools"], call["messages"][1]["tool_calls"][0]["function"]["name"]) == (TOOLS, "now")
        job = api.fine_tuning.create(training_file=file["id"])
        assert api.fine_tuning.wait(job["id"], "succeeded")["fine_tuned_model"]


def test_an_assistant_who_said_nothing_is_an_empty_text_of_the_data(http: ReadyClient) -> None:
    asked = [{"role": "user", "content": "Well?"}, {"role": "assistant"}, {"role": "user", "content": "Go on."}]
    succeeded(http.post(PATH, json=said(messages=asked)))
    file = succeeded(http.post(f"{PATH}/export", json={"purpose": "fine-tune"}))["id"]
    [line] = lines(http, file)
    assert [message["content"] for message in messages_of(line["messages"], "messages")] == [
        "Well?",
        "",
        "Go on.",
        "Go on.",
    ]


def test_an_export_takes_what_it_is_told_to(http: ReadyClient) -> None:
    made = [succeeded(http.post(PATH, json=said(text)))["created"] for text in ("one", "two", "three")]

    def texts(**body: Any) -> list[str]:
        file = succeeded(http.post(f"{PATH}/export", json={"purpose": "fine-tune", **body}))
        return [line["messages"][0]["content"] for line in lines(http, file["id"])]

    assert texts() == ["one", "two", "three"]
    assert texts(limit=2) == ["two", "three"]
    assert texts(model="echo", created_after=made[0], created_before=made[-1]) == ["one", "two", "three"]
    for body, param in (
        ({"model": "another"}, None),
        ({"created_after": made[-1] + 100}, None),
        ({"purpose": "batch"}, "purpose"),
        ({"filename": "data.csv"}, "filename"),
        ({"unknown": 1}, "unknown"),
    ):
        reply = http.post(f"{PATH}/export", json={"purpose": "evals", **body})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_a_message_that_was_continued_is_one_message_of_the_data(http: ReadyClient) -> None:
    messages = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "I say"}]
    fields = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    answers = [succeeded(http.post(PATH, json=said(**fields, echo=echo))) for echo in (False, True)]
    file = succeeded(http.post(f"{PATH}/export", json={"purpose": "fine-tune"}))["id"]
    plain, echoed = (answer["choices"][0]["message"]["content"] for answer in answers)
    assert [line["messages"][1:] for line in lines(http, file)] == [
        [{"role": "assistant", "content": "I say" + plain}], [{"role": "assistant", "content": echoed}],
    ]  # fmt: skip


def test_requests_of_a_batch_are_kept_too(http: ReadyClient) -> None:
    api = Api(http)
    row = {"custom_id": "a", "method": "POST", "url": PATH, "body": said("in a batch")}
    body = {"input_file_id": api.upload(json.dumps(row), purpose="batch"), "endpoint": PATH, "completion_window": "24h"}
    succeeded(http.post("/v1/batches", json=body))
    [id] = until(lambda: ids(http) or None)
    assert succeeded(http.get(f"{PATH}/{id}"))["choices"][0]["message"]["content"] == "in a batch"
