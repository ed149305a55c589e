"""The table of routes holds: for each caller its status, and another owner's things are as if they were not there."""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from engines.echo import EchoEngine, echo_tokenizer
from engines.params.deploy import DeployParams
from server import backlog
from server.evals.records import Counts, OutputItem
from server.evals.service import Evals
from server.http.keys.auth import ROLES_OF_PATHS
from server.http.keys.caller import Role
from server.inference.inference import Inference
from server.jobs.devices import FixedDevices
from server.jobs.executor import LocalExecutor
from server.jobs.job import Job, JobStatus
from server.jobs.jobs import Jobs, Machine
from server.jobs.store import JobStore
from server.parts import make_parts
from server.store.access import SERVER
from server.store.ids import new_id
from tests.adapter_folders import write_adapter
from tests.server.api import LINE, succeeded
from tests.server.client import ReadyClient, Response
from tests.server.http.routes_table import CALLERS, EVAL, JSONL, MERGE, MISSING, ROWS, UPLOAD, Row
from tests.server.jobs.conftest import WORKER
from tests.server.keys import bearer

DOCS = Path(__file__).parents[3] / "docs" / "security.md"
KEYS = {caller: f"{caller}-0123456789abcdef" for caller in CALLERS[1:]}
OF_THE_SERVER = (
    f"acme=infer:{KEYS['infer']}",
    f"acme=train:{KEYS['train']}",
    f"ops=admin:{KEYS['admin']}",
    f"prometheus=metrics:{KEYS['metrics']}",
    f"another=infer+train:{KEYS['another']}",
)


class Server:
    """A server whose jobs and batches wait for ever, and what its callers ask of it."""

    def __init__(self, client: ReadyClient, adapter: Path) -> None:
        self.client = client
        self.adapter = adapter

    def ask(self, caller: str, method: str, path: str, **sent: Any) -> Response:
        headers = bearer(KEYS[caller]) if caller in KEYS else {}
        return self.client.request(method, path, headers=headers, **sent)

    def send(self, caller: str, row: Row, things: "Things | Unknown") -> Response:
        sent: dict[str, Any] = {} if row.body is None else {"json": _filled(row.body, things)}
        if row.form is not None:
            sent = {"data": row.form, "files": {row.file: ("a.jsonl", LINE.encode())}}
        return self.ask(caller, row.method, _filled(re.sub(r":path}", "}", row.path), things), **sent)


class Things:
    """What is there, made where a row names it. It is acme's, but for what an administrator has loaded."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def _make(self, caller: str, path: str, **sent: Any) -> str:
        id: str = succeeded(self._server.ask(caller, "POST", path, **sent))["id"]
        return id

    def _upload(self, caller: str, purpose: str) -> str:
        file = ("a.jsonl", LINE.encode())
        return self._make(caller, "/v1/files", data={"purpose": purpose}, files={"file": file})

    @cached_property
    def file_id(self) -> str:
        return self._upload("train", "fine-tune")

    @cached_property
    def input_id(self) -> str:
        return self._upload("infer", "batch")

    @cached_property
    def upload_id(self) -> str:
        return self._make("train", "/v1/uploads", json={**UPLOAD, "bytes": len(LINE)})

    @cached_property
    def part_id(self) -> str:
        return self._make("train", f"/v1/uploads/{self.upload_id}/parts", files={"data": ("a.jsonl", LINE.encode())})

    @cached_property
    def batch_id(self) -> str:
        body = {"input_file_id": self.input_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
        return self._make("infer", "/v1/batches", json=body)

    @cached_property
    def rows_id(self) -> str:
        return self._upload("infer", "evals")

    @cached_property
    def eval_id(self) -> str:
        return self._make("infer", "/v1/evals", json=EVAL)

    @cached_property
    def run_id(self) -> str:
        return self._make("infer", f"/v1/evals/{self.eval_id}/runs", json=_filled(JSONL, self))

    @cached_property
    def output_item_id(self) -> str:
        """What came of a row, though no run goes on."""
        store, id = self._server.client.parts[Evals].store, new_id("outputitem_")
        item = OutputItem(
            id=id, run_id=self.run_id, place=0, status="pass", created_at=1, datasource_item={}, results=[], sample={}
        )

        async def add() -> None:
            await store.move(self.run_id, ("queued",), "in_progress")
            assert await store.add_items(self.run_id, [item], Counts())

        self._server.client.portal.call(add)
        return id

    @cached_property
    def response_id(self) -> str:
        return self._make("infer", "/v1/responses", json={"model": "echo", "input": "a", "background": True})

    @cached_property
    def completion_id(self) -> str:
        body = {"model": "echo", "messages": [{"role": "user", "content": "a"}], "store": True}
        return self._make("infer", "/v1/chat/completions", json=body)

    @cached_property
    def completion_tag(self) -> str:
        """What a kept completion's metadata says."""
        tag = new_id("")
        metadata = {"metadata": {"tag": tag}}
        succeeded(self._server.ask("infer", "POST", f"/v1/chat/completions/{self.completion_id}", json=metadata))
        return tag

    @cached_property
    def conversation_id(self) -> str:
        return self._make("infer", "/v1/conversations", json={})

    @cached_property
    def item_id(self) -> str:
        """What the conversation has."""
        path = f"/v1/conversations/{self.conversation_id}/items"
        items = {"items": [{"role": "user", "content": "a"}]}
        id: str = succeeded(self._server.ask("infer", "POST", path, json=items))["data"][0]["id"]
        return id

    @cached_property
    def fine_tuning_job_id(self) -> str:
        body = {"model": "echo", "training_file": self.file_id}
        return self._make("train", "/v1/fine_tuning/jobs", json=body)

    @cached_property
    def job_id(self) -> str:
        return self._make("train", "/v1/jobs", json=_filled(MERGE, self))

    @cached_property
    def path(self) -> str:
        """Of a file that the job has made."""
        folder = self._jobs.folders.attempt(self.job_id, 1)
        folder.mkdir()
        (folder / "made.txt").write_text("made")
        return "1/made.txt"

    @cached_property
    def done_job_id(self) -> str:
        """A job that has made an adapter."""
        id = new_id("job-")
        early = ("told", "devices", "metadata", "fine_tuning", "fine_tuned_model")
        late = ("queued_at", "not_before", "started_at", "finished_at", "error")
        none: dict[str, Any] = dict.fromkeys((*early, *late))
        made = {"status": "succeeded", "artifact": "adapter", "kind": "adapter", "final_step": 1, "trained_tokens": 1}
        job = Job(
            id=id, type="sft", status=JobStatus.SUCCEEDED, parameters={}, priority=0, attempt=1, deaths=0,
            validated=True, owner="acme", created_at=1, result=made, **none,
        )  # fmt: skip
        store: JobStore = self._jobs.store
        self._server.client.portal.call(store.create, job, SERVER)
        write_adapter(self._jobs.folders.attempt(id, 1) / "adapter")
        return id

    @property
    def _jobs(self) -> Jobs:
        return self._server.client.parts[Jobs]

    @cached_property
    def model(self) -> str:
        return self._publish(f"ft:echo:org::{new_id('')}")

    @cached_property
    def checkpoint(self) -> str:
        return self._publish(f"{self.model}:ckpt-step-2")

    def _publish(self, name: str) -> str:
        async def publish() -> None:
            inference = self._server.client.parts[Inference]
            await inference.fine_tuned.give(name, "acme")
            await inference.adapters.load(name, self._server.adapter)

        self._server.client.portal.call(publish)
        return name

    @cached_property
    def alias(self) -> str:
        """What an administrator calls acme's model, for everybody."""
        succeeded(self._server.ask("admin", "POST", "/v1/adapters/shared/alias", json={"target": self.model}))
        return "shared"

    @cached_property
    def name(self) -> str:
        """An adapter that an administrator has loaded."""
        name = f"adapter-{new_id('')}"
        succeeded(self._server.ask("admin", "POST", "/v1/adapters", json={"name": name, "path": "adapter"}))
        return name

    @cached_property
    def new(self) -> str:
        return f"adapter-{new_id('')}"


class Unknown:
    """Names of the same kinds, of what never was."""

    file_id = input_id = rows_id = "file-0123456789abcdefghijklmn"
    upload_id = "upload_0123456789abcdefghijklmn"
    part_id = "part_0123456789abcdefghijklmn"
    eval_id = "eval_0123456789abcdefghijklmn"
    run_id = "evalrun_0123456789abcdefghijklmn"
    output_item_id = "outputitem_0123456789abcdefghijklmn"
    batch_id = "batch_0123456789abcdefghijklmn"
    response_id = "resp_0123456789abcdef0123456789abcdef"
    conversation_id = "conv_0123456789abcdefghijklmn"
    item_id = "msg_0123456789abcdefghijklmn"
    completion_id = "chatcmpl-0123456789abcdefghijklmn"
    fine_tuning_job_id = "ftjob-0123456789abcdefghijklmn"
    job_id = done_job_id = "job-0123456789abcdefghijklmn"
    path = "1/made.txt"
    model = "ft:echo:org::0123456789abcdefghijklmn"
    checkpoint = f"{model}:ckpt-step-2"


def _filled(value: Any, things: Things | Unknown) -> Any:
    """`value` with the things in place of their names in braces."""
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda found: str(getattr(things, found[1])), value)
    if isinstance(value, dict):
        return {name: _filled(each, things) for name, each in value.items()}
    return [_filled(each, things) for each in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    adapter = write_adapter(folder / "root" / "adapter")
    params = DeployParams(
        model="tests/echo", state_dir=str(folder / "state"), adapter_roots=(str(folder / "root"),), log_interval=-1,
        api_key=OF_THE_SERVER, max_running_jobs=0, max_queued_jobs=10_000, max_queued_batches=10_000, verbose=False,
        keep_completions=True,
    )  # fmt: skip
    machine = Machine(executor=LocalExecutor(command=WORKER), devices=FixedDevices())
    parts = make_parts(EchoEngine(), echo_tokenizer(), params, machine=machine)
    with pytest.MonkeyPatch.context() as patch, ReadyClient(parts) as client:
        patch.setattr(backlog, "MAX_RUNNING", 0)
        yield Server(client, adapter)


@pytest.fixture(autouse=True)
def awake(server: Server) -> Iterator[None]:
    yield
    if server.ask("admin", "GET", "/is_sleeping").json()["is_sleeping"]:
        server.ask("admin", "POST", "/wake_up")


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_route_answers_each_caller_as_the_table_says(server: Server, row: Row, caller: str) -> None:
    things = Things(server)
    reply = server.send(caller, row, things)
    assert reply.status_code == row.statuses[CALLERS.index(caller)], reply.text
    if caller == "another" and reply.status_code == MISSING:
        unknown = server.send(caller, row, Unknown())
        assert (unknown.status_code, _anonymous(unknown, Unknown())) == (MISSING, _anonymous(reply, things))


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("row", [row for row in ROWS if row.method == "GET"], ids=lambda row: row.id)
def test_head_answers_each_caller_with_the_status_and_headers_of_get_alone(
    server: Server, row: Row, caller: str
) -> None:
    things = Things(server)
    whole, head = (server.send(caller, replace(row, method=method), things) for method in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers.keys() == whole.headers.keys()


def _anonymous(reply: Response, things: Things | Unknown) -> str:
    """What it says, without the names of things, and without the request's id, which Anthropic's errors have."""
    found = {**vars(type(things)), **vars(things)}
    names = [value for name, value in found.items() if isinstance(value, str) and not name.startswith("_")]
    text = reply.text.replace(reply.headers["x-request-id"], "NAME")
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, "NAME")
    return text


def test_no_route_is_missing_from_the_table(server: Server) -> None:
    routes = {
        (method, each.path)
        for each in server.client.app.routes
        if isinstance(each, Route)
        for method in (each.methods or set()) - {"HEAD"}
    }
    assert routes == {(row.method, row.path) for row in ROWS}
    assert len(server.client.app.routes) == len([each for each in server.client.app.routes if isinstance(each, Route)])


def test_the_roles_of_paths_are_documented() -> None:
    rows = []
    for methods, start, roles in ROLES_OF_PATHS:
        words = ", ".join(f"`{method}`" for method in sorted(methods))
        rows.append(f"| {words} | `{start}` | {', '.join(role for role in Role if role in roles)} |")
    assert "\n".join(rows) in DOCS.read_text(), "the table of docs/security.md should be:\n" + "\n".join(rows)
