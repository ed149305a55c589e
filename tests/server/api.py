"""The client of a server's API, whichever process the server runs in: models, answers, adapters and jobs of both kinds.
Every answer that OpenAI describes is checked against its description on the way."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from httpx2 import Response

from tests.server.client import ReadyClient
from tests.server.openai_schema import check
from tests.server.process import ServerProcess
from tests.until import PATIENCE, until

__all__ = ["LINE", "Api", "EchoApi", "Refusal", "Response", "api_of", "text_of"]

LINE = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
"""A file to train on."""
ENDED = ("succeeded", "failed", "cancelled")


def succeeded(reply: Response) -> dict[str, Any]:
    """The answer to a request that should be done."""
    assert reply.status_code in (200, 201), reply.text
    answer: dict[str, Any] = reply.json()
    return answer


class Adapters:
    """/v1/adapters, and vLLM's two endpoints."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def post(self, name: str, path: object, **fields: Any) -> Response:
        return self._http.post("/v1/adapters", json={"name": name, "path": str(path), **fields})

    def create(self, name: str, path: object, **fields: Any) -> dict[str, Any]:
        return succeeded(self.post(name, path, **fields))

    def load(self, name: str, path: object, **fields: Any) -> Response:
        return self._http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path), **fields})

    def unload(self, name: str) -> Response:
        return self._http.post("/v1/unload_lora_adapter", json={"lora_name": name})

    def alias(self, name: str, target: str) -> Response:
        return self._http.post(f"/v1/adapters/{name}/alias", json={"target": target})

    def delete(self, name: str) -> Response:
        return self._http.delete(f"/v1/adapters/{name}")

    def get(self, name: str) -> dict[str, Any]:
        return succeeded(self._http.get(f"/v1/adapters/{name}"))

    def all(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = succeeded(self._http.get("/v1/adapters"))["data"]
        return found

    def names(self) -> list[str]:
        return [adapter["id"] for adapter in self.all()]


class _Jobs:
    """What is asked of jobs of either kind."""

    path: str

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def get(self, id: str) -> dict[str, Any]:
        return self._part(id)

    def move(self, id: str, verb: str) -> Response:
        """`cancel`, `pause`, `resume` or `retry` it."""
        return self._http.post(f"{self.path}/{id}/{verb}")

    def wait(self, id: str, *statuses: str, happened: Callable[[], object] = lambda: False) -> dict[str, Any]:
        """The job once it has one of these statuses, once that has happened, or once it has ended."""

        def look() -> dict[str, Any] | None:
            job = self.get(id)
            return job if job["status"] in (*statuses, *ENDED) or happened() else None

        job = until(look, told=lambda: self.get(id))
        assert not statuses or job["status"] in statuses, job
        return job

    def _part(self, id: str, part: str = "", **query: Any) -> dict[str, Any]:
        return succeeded(self._http.get(f"{self.path}/{id}{part}", params=query))


class Jobs(_Jobs):
    """/v1/jobs."""

    path = "/v1/jobs"

    def post(self, type: str, parameters: dict[str, Any], **fields: Any) -> Response:
        return self._http.post(self.path, json={"type": type, "parameters": parameters, **fields})

    def create(self, type: str, parameters: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return succeeded(self.post(type, parameters, **fields))

    def refused(self, type: str, parameters: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """The error of a job that cannot be made."""
        reply = self.post(type, parameters, **fields)
        assert reply.status_code in (400, 404), reply.text
        error: dict[str, Any] = reply.json()["error"]
        return error

    def page(self, **query: Any) -> dict[str, Any]:
        return succeeded(self._http.get(self.path, params=query))

    def events(self, id: str, **query: Any) -> dict[str, Any]:
        return self._part(id, "/events", **query)

    def logs(self, id: str, **query: Any) -> dict[str, Any]:
        return self._part(id, "/logs", **query)

    def curve(self, id: str) -> list[dict[str, Any]]:
        """The metrics of each step that was logged."""
        points: list[dict[str, Any]] = self._part(id, "/metrics")["data"]
        return points

    def artifacts(self, id: str) -> dict[str, Any]:
        return self._part(id, "/artifacts")

    def artifact(self, id: str, path: str) -> Response:
        return self._http.get(f"{self.path}/{id}/artifacts/{path}")

    def result(self, id: str, file: str) -> bytes:
        """A file of what the job made."""
        reply = self.artifact(id, f"{self.artifacts(id)['result']}/{file}")
        assert reply.status_code in (200, 201), reply.text
        return reply.content


class FineTuning(_Jobs):
    """OpenAI's /v1/fine_tuning/jobs."""

    path = "/v1/fine_tuning/jobs"

    def __init__(self, http: httpx2.Client, upload: Callable[[], str]) -> None:
        super().__init__(http)
        self._upload = upload

    def post(self, **body: Any) -> Response:
        """Without `training_file`, on one that is uploaded for it."""
        file = {} if "training_file" in body else {"training_file": self._upload()}
        return self._http.post(self.path, json={"model": "echo"} | file | body)

    def create(self, **body: Any) -> dict[str, Any]:
        return checked("FineTuningJob", succeeded(self.post(**body)))

    def get(self, id: str) -> dict[str, Any]:
        return checked("FineTuningJob", self._part(id))

    def page(self, **query: Any) -> dict[str, Any]:
        return checked("ListPaginatedFineTuningJobsResponse", succeeded(self._http.get(self.path, params=query)))

    def events(self, id: str, *, limit: int = 100, **query: Any) -> dict[str, Any]:
        return checked("ListFineTuningJobEventsResponse", self._part(id, "/events", limit=limit, **query))

    def checkpoints(self, id: str, **query: Any) -> dict[str, Any]:
        return checked("ListFineTuningJobCheckpointsResponse", self._part(id, "/checkpoints", **query))


def checked(name: str, answer: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's description knows no status `paused`, though its examples have it, and none of the methods beyond its
    own."""
    described = json.loads(json.dumps(answer).replace('"status": "paused"', '"status": "queued"'))
    if "kto" in (described.get("method") or {}).values():
        del described["method"]
    check(name, described)
    return answer


@dataclass(frozen=True)
class Refusal:
    status: int
    message: str
    param: str | None
    code: str | None


class Api:
    """A server that is asked over `http`."""

    def __init__(self, http: httpx2.Client) -> None:
        self.http = http
        self.adapters = Adapters(http)
        self.jobs = Jobs(http)
        self.fine_tuning = FineTuning(http, self.upload)

    def post(self, path: str, /, **body: Any) -> Response:
        return self.http.post(path, json=body)

    def upload(self, text: str = LINE, *, purpose: str = "fine-tune") -> str:
        """The id of a file."""
        upload = {"file": ("data.jsonl", text.encode())}
        reply = self.http.post("/v1/files", data={"purpose": purpose}, files=upload)
        id: str = succeeded(reply)["id"]
        return id

    def files(self, **query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = succeeded(self.http.get("/v1/files", params=query))["data"]
        return found

    def models(self) -> dict[str, dict[str, Any]]:
        """Cards by their names."""
        return {card["id"]: card for card in succeeded(self.http.get("/v1/models"))["data"]}

    # ---- answers

    def chat(self, content: str = "hello", **body: Any) -> dict[str, Any]:
        """Ask with one message of the user, or with `messages`."""
        return self._ask("/v1/chat/completions", _chat(content, body), "CreateChatCompletionResponse")

    def answer(self, model: str, content: str = "hello", **body: Any) -> str:
        """What a model says. EchoEngine's begins with the version of the adapter."""
        text: str = self.chat(content, model=model, **body)["choices"][0]["message"]["content"]
        return text

    def chat_chunks(self, content: str = "hello", **body: Any) -> list[dict[str, Any]]:
        body = _chat(content, body | {"stream": True})
        return self._stream("/v1/chat/completions", body, "CreateChatCompletionStreamResponse")

    @contextmanager
    def streaming(self, model: str, content: str = "hello", **body: Any) -> Iterator[Iterator[str]]:
        """The pieces of text of a running stream, once it has begun: the first, which names the role, has none."""
        body = _chat(content, body | {"model": model, "stream": True})
        with self.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            assert reply.status_code in (200, 201)
            pieces = _texts(reply.iter_lines())
            next(pieces)
            yield pieces

    def complete(self, prompt: Any = "hello", **body: Any) -> dict[str, Any]:
        return self._ask("/v1/completions", {"model": "echo", "prompt": prompt, **body}, "CreateCompletionResponse")

    def completion_chunks(self, prompt: Any = "hello", **body: Any) -> list[dict[str, Any]]:
        body = {"model": "echo", "prompt": prompt, "stream": True, **body}
        return self._stream("/v1/completions", body, "CreateCompletionResponse")

    def respond(self, input: Any = "hello", **body: Any) -> dict[str, Any]:
        return self._ask("/v1/responses", {"model": "echo", "input": input, **body}, "Response")

    def response_events(self, input: Any = "hello", **body: Any) -> list[dict[str, Any]]:
        """Each is named by its type, numbered, and as OpenAI describes it."""
        reply = self.http.post("/v1/responses", json={"model": "echo", "input": input, **body, "stream": True})
        assert reply.status_code in (200, 201), reply.text
        return checked_events(reply.text)

    def refusal(self, path: str, **body: Any) -> Refusal:
        body = {"model": "echo", **DEFAULTS[path], **body}
        reply = self.http.post(path, json=body)
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return Refusal(reply.status_code, error["message"], error["param"], error["code"])

    def refused_chat(self, **body: Any) -> Refusal:
        return self.refusal("/v1/chat/completions", **body)

    def refused_response(self, **body: Any) -> Refusal:
        return self.refusal("/v1/responses", **body)

    def refused_completion(self, **body: Any) -> Refusal:
        return self.refusal("/v1/completions", **body)

    def _ask(self, path: str, body: dict[str, Any], schema: str) -> dict[str, Any]:
        answer = succeeded(self.http.post(path, json=body))
        check(schema, answer)
        return answer

    def _stream(self, path: str, body: dict[str, Any], schema: str) -> list[dict[str, Any]]:
        reply = self.http.post(path, json=body)
        assert reply.status_code in (200, 201), reply.text
        events = reply.text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        for chunk in chunks:
            check(schema, without_null_usage(chunk, schema))
        assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
        return chunks


class EchoApi(Api):
    """A server in the test's own process."""

    http: ReadyClient

    def __init__(self, http: ReadyClient) -> None:
        super().__init__(http)


@contextmanager
def api_of(server: ServerProcess) -> Iterator[Api]:
    """The client of a server in a process of its own."""
    with httpx2.Client(base_url=server.url, timeout=PATIENCE) as http:
        yield Api(http)


def _chat(content: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": content}], **body}


def _texts(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            yield event["choices"][0]["delta"].get("content", "")


DEFAULTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
}


def without_null_usage(chunk: dict[str, Any], schema: str) -> dict[str, Any]:
    """For completions OpenAI describes the null before a stream's totals in words only."""
    if schema == "CreateCompletionResponse" and "usage" in chunk and chunk["usage"] is None:
        return {key: value for key, value in chunk.items() if key != "usage"}
    return chunk


def checked_events(stream: str, *, first: int = 0) -> list[dict[str, Any]]:
    """The events of a response's stream, from number `first` on."""
    *events, rest = stream.split("\n\n")
    assert rest == ""
    told = []
    for number, event in enumerate((event for event in events if not event.startswith(":")), first):
        name, data = event.split("\n")
        told.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
        assert told[-1]["sequence_number"] == number
        check("ResponseStreamEvent", told[-1])
    return told


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """What the chunks' deltas say, joined."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
