"""Batches over the API, with OpenAI's own client, on a server in its own process."""

import json
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import openai
import pytest

from tests.adapter_folders import write_adapter
from tests.server.keys import ASK, KEYS, TEACH, bearer
from tests.server.openai_schema import check
from tests.server.process import Kept, ServerProcess
from tests.server.states import as_state
from tests.until import until

CHAT: Final = "/v1/chat/completions"
OVER = {"completed", "failed", "cancelled", "expired"}


def line(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "echo", **body}}


def said(custom_id: str, content: str, **body: Any) -> dict[str, Any]:
    return line(custom_id, messages=[{"role": "user", "content": content}], **body)


class Api(Kept):
    """What tests ask of the batches of a server."""

    def upload(self, *lines: dict[str, Any] | bytes, purpose: Any = "batch") -> str:
        content = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
        return self.client.files.create(file=("input.jsonl", content), purpose=purpose).id

    def create(self, *lines: dict[str, Any] | bytes, endpoint: Any = CHAT, **options: Any) -> Any:
        return self.client.batches.create(
            input_file_id=self.upload(*lines), endpoint=endpoint, completion_window="24h", **options
        )

    def wait(self, batch: Any, status: str | None = None) -> Any:
        """The batch as it is once it is over, or in `status`."""

        def look() -> Any:
            return self.client.batches.retrieve(batch.id)

        batch = until(lambda: now if (now := look()).status in ({status} | OVER) else None, told=look)
        assert batch.status == status or not status, batch
        check("Batch", batch.model_dump(mode="json", exclude_unset=True))
        return batch

    def lines(self, file_id: str | None) -> dict[str, Any]:
        """What a file of results says, by custom id."""
        assert file_id is not None
        lines = [json.loads(line) for line in self.client.files.content(file_id).text.splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines), "no request has two results"
        assert len({line["id"] for line in lines}) == len(lines)
        return {line["custom_id"]: line for line in lines}

    def folders(self) -> list[Path]:
        return sorted((self.folder / "batches").glob("*/*"))

    def results(self) -> list[dict[str, Any]]:
        """The whole lines of a batch that runs, or ran when the server ended."""
        [output] = (self.folder / "batches").glob("*/*/output.jsonl")
        return [json.loads(line) for line in output.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


@pytest.fixture
def start(start_echo: Callable[..., ServerProcess], tmp_path: Path) -> Callable[..., Api]:
    def start(*, faults: dict[str, Any] | None = None, engine: dict[str, Any] | None = None, **params: Any) -> Api:
        params = {"state_dir": str(as_state(tmp_path)), "verbose": False, **params}
        return Api(start_echo(params=params, faults=faults or {}, engine=engine or {}), tmp_path)

    return start


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("state")
    adapter = write_adapter(folder / "root" / "sql")
    params = {"state_dir": str(folder), "verbose": False, "adapters": [f"sql={adapter}"], "max_body_size": 1}
    server = ServerProcess.echo(params=params)
    server.wait_until_listening()
    yield Api(server, folder)
    server.close()


# ---- from the input to the output


def test_requests_are_answered_as_the_route_answers_them(api: Api) -> None:
    batch = api.create(*(said(f"r{n}", f"text {n}") for n in range(40)), metadata={"for": "a test"})
    assert (batch.status, batch.object, batch.endpoint) == ("validating", "batch", CHAT)
    assert batch.expires_at == batch.created_at + 24 * 3600
    done = api.wait(batch)
    assert (done.status, done.error_file_id, done.errors) == ("completed", None, None)
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (40, 40, 0)
    assert (done.metadata, done.model) == ({"for": "a test"}, "echo")
    assert batch.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    results = api.lines(done.output_file_id)
    assert results.keys() == {f"r{n}" for n in range(40)}
    for n in range(40):
        result = results[f"r{n}"]
        assert result["error"] is None and result["id"].startswith("batch_req_")
        assert (result["response"]["status_code"], bool(result["response"]["request_id"])) == (200, True)
        check("CreateChatCompletionResponse", result["response"]["body"])
        assert result["response"]["body"]["choices"][0]["message"]["content"] == f"text {n}"
    usages = [result["response"]["body"]["usage"] for result in results.values()]
    assert done.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert done.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages)
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens
    output = api.client.files.retrieve(done.output_file_id)
    assert (output.purpose, output.filename, output.expires_at) == ("batch_output", f"{batch.id}_output.jsonl", None)
    until(lambda: api.folders() == [])


def test_completions_and_embeddings_have_batches_too(api: Api) -> None:
    texts = api.wait(api.create(line("a", "/v1/completions", prompt=["ab", "cd"], n=2), endpoint="/v1/completions"))
    [result] = api.lines(texts.output_file_id).values()
    assert [choice["text"] for choice in result["response"]["body"]["choices"]] == ["ab", "ab", "cd", "cd"]
    vectors = api.wait(api.create(line("a", "/v1/embeddings", input=["x", "y"]), endpoint="/v1/embeddings"))
    [result] = api.lines(vectors.output_file_id).values()
    same = api.client.embeddings.create(model="echo", input=["x", "y"], encoding_format="float")
    assert [item["embedding"] for item in result["response"]["body"]["data"]] == [item.embedding for item in same.data]
    assert (vectors.usage.input_tokens, vectors.usage.output_tokens) == (2, 0)


def test_scores_and_ranks_have_batches_too(api: Api) -> None:
    for url, given in (
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    ):
        done = api.wait(api.create(line("a", url, **given), line("b", url, **given, priority=1), endpoint=url))
        [result] = api.lines(done.output_file_id).values()
        (one,) = result["response"]["body"].get("data") or result["response"]["body"]["results"]
        assert one["index"] == 0 and done.usage.input_tokens == 2
        [refusal] = api.lines(done.error_file_id).values()
        assert refusal["response"]["body"]["error"]["param"] == "priority"
    done = api.wait(api.create(line("a", "/v1/classify", input="a"), endpoint="/v1/classify"))
    [refusal] = api.lines(done.error_file_id).values()
    assert "no head" in refusal["response"]["body"]["error"]["message"]


def test_responses_have_batches_too(api: Api) -> None:
    url = "/v1/responses"
    asked = (line("a", url, input="hello"), line("b", url, input="hello", background=True), line("c", url, tools=[3]))
    batch = api.wait(api.create(*asked, endpoint=url))
    [result] = api.lines(batch.output_file_id).values()
    response = result["response"]["body"]
    assert (response["object"], response["output"][0]["content"][0]["text"]) == ("response", "hello")
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (
        response["usage"]["input_tokens"],
        response["usage"]["output_tokens"],
    )
    assert api.client.responses.retrieve(response["id"]).output_text == "hello"
    refused = {id: error["response"]["body"]["error"]["param"] for id, error in api.lines(batch.error_file_id).items()}
    assert refused == {"b": "background", "c": "input"}


def test_a_request_names_its_own_model(api: Api) -> None:
    batch = api.wait(api.create(said("base", "hi"), said("adapter", "hi", model="sql"), said("none", "hi", model="x")))
    assert (batch.status, batch.model) == ("completed", None)
    results = api.lines(batch.output_file_id)
    assert results["base"]["response"]["body"]["choices"][0]["message"]["content"] == "hi"
    assert results["adapter"]["response"]["body"]["choices"][0]["message"]["content"].startswith("sql@")
    failed = api.lines(batch.error_file_id)["none"]["response"]
    assert (failed["status_code"], failed["body"]["error"]["code"]) == (404, "model_not_found")


def test_requests_that_are_refused_are_in_the_error_file(api: Api) -> None:
    requests = {
        "fine": said("fine", "hi"),
        "stream": said("stream", "hi", stream=True),
        "priority": said("priority", "hi", priority=-1),
        "nonsense": said("nonsense", "hi", nonsense=1),
        "temperature": said("temperature", "hi", temperature=9),
        "messages": line("messages", messages=[]),
        "web_search_options": said("web_search_options", "hi", web_search_options={}),
    }
    batch = api.wait(api.create(*requests.values()))
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 2, 5)
    assert api.lines(batch.output_file_id).keys() == {"fine", "nonsense"}
    errors = api.lines(batch.error_file_id)
    assert errors.keys() == requests.keys() - {"fine", "nonsense"}
    for name, result in errors.items():
        assert result["error"] is None
        assert result["response"]["status_code"] == 400
        assert result["response"]["body"]["error"]["param"] == name


def test_a_batch_of_which_nothing_succeeds_has_no_output(api: Api) -> None:
    batch = api.wait(api.create(said("a", "hi", model="x")))
    assert (batch.status, batch.output_file_id, batch.request_counts.failed) == ("completed", None, 1)


def test_the_output_expires_when_it_was_said_to(api: Api) -> None:
    expiry: Any = {"anchor": "created_at", "seconds": 7200}
    batch = api.wait(api.create(said("a", "hi"), output_expires_after=expiry))
    file = api.client.files.retrieve(batch.output_file_id)
    assert file.expires_at == file.created_at + 7200


def test_batches_are_listed_newest_first_in_pages(api: Api) -> None:
    made = [api.create(said("a", "hi")).id for _ in range(3)]
    page = api.http.get("/v1/batches", params={"limit": 2}).json()
    check("ListBatchesResponse", page)
    assert ([batch["id"] for batch in page["data"]], page["has_more"]) == ([made[2], made[1]], True)
    assert (page["first_id"], page["last_id"]) == (made[2], made[1])
    assert [batch.id for batch in api.client.batches.list(limit=1)][:3] == made[::-1]
    for query, status in (("limit=0", 400), ("limit=101", 400), ("after=batch_nope", 404)):
        assert api.http.get(f"/v1/batches?{query}").status_code == status


# ---- what is no batch


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint", 400),
        ({"completion_window": "1h"}, "completion_window", 400),
        ({"input_file_id": "file-nope"}, "input_file_id", 404),
        ({"metadata": {"k": 1}}, "metadata.k", 400),
        ({"metadata": {"k" * 65: "v"}}, None, 400),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata", 400),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds", 400),
    ],
)
def test_a_batch_that_cannot_be_made_is_refused(api: Api, body: dict[str, Any], param: str, status: int) -> None:
    given = {"input_file_id": api.upload(said("a", "hi")), "endpoint": CHAT, "completion_window": "24h", **body}
    reply = api.http.post("/v1/batches", json=given)
    assert reply.status_code == status, reply.text
    if param is not None:
        assert reply.json()["error"]["param"] == param


def test_a_file_for_another_purpose_is_refused(api: Api) -> None:
    file = api.upload(said("a", "hi"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="'fine-tune', not 'batch'"):
        api.client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"{\n", "invalid_json_line", None),
        (b"\xff\xfe\n", "invalid_json_line", None),
        (b"[1]\n", "invalid_json_line", None),
        (b'"' + b"x" * (1 << 20) + b'"\n', "line_too_long", None),
        (said("a", "again"), "duplicate_custom_id", "custom_id"),
        ({**said("b", "x"), "method": "GET"}, "invalid_request", "method"),
        (line("b", "/v1/embeddings", input="x"), "invalid_url", "url"),
        ({**said("b", "x"), "custom_id": 1}, "invalid_request", "custom_id"),
        ({"method": "POST", "url": CHAT, "body": {}}, "missing_required_parameter", "custom_id"),
        ({**said("b", "x"), "body": []}, "invalid_request", "body"),
    ],
    ids=range(10),
)
def test_a_line_that_is_no_request_fails_the_batch_by_its_number(api: Api, bad: Any, code: str, param: str) -> None:
    batch = api.wait(api.create(said("a", "hi"), b"\n", bad))
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.failed_at is not None and batch.errors is not None and batch.errors.object == "list"
    [error] = batch.errors.data
    assert (error.code, error.param, error.line) == (code, param, 3)
    assert error.message


def test_a_file_that_an_editor_began_with_a_byte_order_mark_is_read(api: Api) -> None:
    batch = api.wait(api.create(b"\xef\xbb\xbf", said("a", "hi"), said("b", "ho")))
    assert (batch.status, batch.request_counts.completed) == ("completed", 2)


def test_all_lines_are_looked_at_and_the_errors_are_not_too_many(api: Api) -> None:
    batch = api.wait(api.create(b"{\n", said("a", "hi"), b"{\n"))
    assert [error.line for error in batch.errors.data] == [1, 3]
    many = api.wait(api.create(*[b"{\n"] * 1000))
    assert len(many.errors.data) == 100


def test_an_empty_file_fails_the_batch(api: Api) -> None:
    [error] = api.wait(api.create(b"\n\n")).errors.data
    assert (error.code, error.line) == ("empty_file", None)


def test_a_batch_that_is_not_there_is_not_found(api: Api) -> None:
    for call in (api.client.batches.retrieve, api.client.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="batch_nope"):
            call("batch_nope")


# ---- while it runs


def test_a_batch_is_cancelled_and_keeps_what_was_answered(start: Callable[..., Api]) -> None:
    api = start(faults={"token_delay": 0.01}, batch_concurrency=2)
    batch = api.create(*(said(f"r{n}", "a" * 10) for n in range(200)))
    until(lambda: api.client.batches.retrieve(batch.id).request_counts.completed > 0)
    cancelling = api.client.batches.cancel(batch.id)
    assert (cancelling.status, cancelling.cancelling_at is not None) == ("cancelling", True)
    done = api.wait(batch)
    assert (done.status, done.cancelled_at is not None) == ("cancelled", True)
    counts = done.request_counts
    assert (counts.total, counts.failed) == (200, 0) and 0 < counts.completed < 200
    assert len(api.lines(done.output_file_id)) == counts.completed
    assert api.client.batches.cancel(batch.id).status == "cancelled"
    over = api.wait(api.create(said("a", "hi")))
    with pytest.raises(openai.ConflictError, match="completed"):
        api.client.batches.cancel(over.id)


def test_the_input_can_be_deleted_while_it_is_read(start: Callable[..., Api]) -> None:
    api = start(faults={"token_delay": 0.005})
    batch = api.create(*(said(f"r{n}", "abc") for n in range(60)))
    api.client.files.delete(batch.input_file_id)
    assert api.wait(batch).request_counts.completed == 60


def test_a_full_queue_and_a_dead_engine_make_it_wait(start: Callable[..., Api]) -> None:
    api = start(faults={"token_delay": 0.002, "start_delay": 0.5}, engine={"max_requests": 1}, batch_concurrency=8)
    batch = api.wait(api.create(*(said(f"r{n}", "abc") for n in range(30))))
    assert (batch.status, batch.request_counts.completed) == ("completed", 30)


def test_it_leaves_room_for_others(start: Callable[..., Api]) -> None:
    api = start(faults={"token_delay": 0.01}, engine={"max_requests": 4}, max_num_seqs=4, batch_concurrency=100)
    batch = api.create(*(said(f"r{n}", "a" * 20) for n in range(300)))
    api.wait(batch, "in_progress")
    for _ in range(10):
        assert api.client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "now"}])
    assert api.client.batches.retrieve(batch.id).status == "in_progress"
    api.client.batches.cancel(batch.id)


def test_what_is_not_answered_in_time_expires(start: Callable[..., Api]) -> None:
    api = start(faults={"token_delay": 0.01}, batch_concurrency=2)
    batch = api.create(*(said(f"r{n}", "a" * 10) for n in range(200)))
    until(lambda: api.client.batches.retrieve(batch.id).request_counts.completed > 0)
    api.server.signal(signal.SIGKILL)
    api.server.wait()
    with sqlite3.connect(api.folder / "store" / "tuneserve.sqlite3") as database:
        database.execute("UPDATE batches SET expires_at = ?", (int(time.time()) - 1,))
    api = start()
    done = api.wait(batch)
    assert (done.status, done.expired_at is not None, done.request_counts.total) == ("expired", True, 200)
    answered, expired = api.lines(done.output_file_id), api.lines(done.error_file_id)
    assert len(answered) + len(expired) == 200 and answered and not answered.keys() & expired.keys()
    assert done.request_counts.failed == len(expired)
    for result in expired.values():
        assert (result["response"], result["error"]["code"]) == (None, "batch_expired")


# ---- from one server to the next


def test_a_server_that_is_killed_again_and_again_answers_every_request_once(
    start: Callable[..., Api], database_url: str
) -> None:
    chance = random.Random(7)
    settings: dict[str, Any] = {
        "faults": {"token_delay": 0.002},
        "batch_concurrency": 4,
        "database_url": database_url,
    }
    api = start(**settings)
    count = 120
    batch = api.create(*(said(f"r{n}", f"text {n}") for n in range(count)))
    finished: dict[str, str] = {}  # custom id -> id of its result
    for _ in range(3):
        before = len(finished)
        goal = before + chance.randrange(3, 15)
        # B023: it is called here only, before the loop gives `api` and `goal` other values.
        until(lambda: bool(api.folders()) and _has_results(api) and len(api.results()) >= goal)  # noqa: B023
        api.server.signal(signal.SIGKILL)
        api.server.wait()
        results = {line["custom_id"]: line["id"] for line in api.results()}
        assert len(results) == len(api.results())
        assert finished.items() <= results.items(), "what was answered is not answered again"
        finished = results
        if chance.random() < 0.5:  # a line that was cut by the kill
            [output] = (api.folder / "batches").glob("*/*/output.jsonl")
            with output.open("ab") as file:
                file.write(b'{"id": "batch_req_x", "custom_id": "r')
        api = start(**settings)
    done = api.wait(batch)
    assert (done.status, done.request_counts.completed) == ("completed", count)
    lines = api.lines(done.output_file_id)
    assert lines.keys() == {f"r{n}" for n in range(count)}
    assert finished.items() <= {custom_id: result["id"] for custom_id, result in lines.items()}.items()
    usages = [result["response"]["body"]["usage"]["prompt_tokens"] for result in lines.values()]
    assert done.usage.input_tokens == sum(usages)
    assert [file.purpose for file in api.client.files.list()].count("batch_output") == 1


def test_a_server_that_is_stopped_hands_its_batches_to_the_next(start: Callable[..., Api]) -> None:
    api = start(faults={"token_delay": 0.005})
    running = api.create(*(said(f"r{n}", "abc") for n in range(300)))
    cancelled = api.create(*(said(f"r{n}", "abc") for n in range(300)))
    api.wait(running, "in_progress")
    api.server.signal()
    assert api.server.wait() == 0
    with sqlite3.connect(api.folder / "store" / "tuneserve.sqlite3") as database:
        database.execute("UPDATE batches SET status = 'cancelling' WHERE id = ?", (cancelled.id,))
    again = start()
    assert again.wait(running).request_counts.completed == 300
    assert again.wait(cancelled).status == "cancelled"


def test_a_batch_whose_folder_is_gone_says_so(start: Callable[..., Api]) -> None:
    api = start(faults={"start_delay": 3600})
    batch = api.create(said("a", "hi"))
    api.server.signal(signal.SIGKILL)
    api.server.wait()
    shutil.rmtree(api.folder / "batches")
    [error] = start().wait(batch).errors.data
    assert error.code == "input_file_missing"


# ---- keys, and what is counted


def test_batches_are_for_who_may_ask(start: Callable[..., Api]) -> None:
    api = start(api_key=KEYS)
    for key, status in ((ASK, 200), (TEACH, 403), ("none", 401)):
        assert api.http.get("/v1/batches", headers=bearer(key)).status_code == status


def test_batches_are_counted(api: Api) -> None:
    def value(name: str) -> float:
        for row in api.http.get("/metrics").text.splitlines():
            if row.startswith(f"tuneserve:{name}"):
                return float(row.rpartition(" ")[2])
        return 0.0

    before = value("time_to_first_token_seconds_count")
    count = value('batch_requests_total{engine="pt",model_name="echo",result="completed"}')
    api.wait(api.create(*(said(f"r{n}", "hi") for n in range(5))))
    assert value('batch_requests_total{engine="pt",model_name="echo",result="completed"}') == count + 5
    assert value("time_to_first_token_seconds_count") == before, "who waits by choice is no measure of waiting"
    until(lambda: value("batches_unfinished") == 0)


def _has_results(api: Api) -> bool:
    return bool(list((api.folder / "batches").glob("*/*/output.jsonl")))
