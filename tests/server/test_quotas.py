"""What one client may have of files, batches and jobs, and the room on the disk that is the database's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.echo import EchoEngine, EchoFaults
from tests.server.client import ReadyClient, Response, echo_client
from tests.server.states import as_state

ROW = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
REQUEST = (
    b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": '
    b'{"model": "echo", "prompt": "hi", "max_tokens": 1000, "ignore_eos": true}}'
)
KEYS = {name: f"{name}-key-{'x' * 16}" for name in ("ann", "bob")}


class Client:
    """One key's view of a server, or that of anybody."""

    def __init__(self, http: ReadyClient, key: str | None = None) -> None:
        self._http = http
        self._headers = {} if key is None else {"authorization": f"Bearer {KEYS[key]}"}

    def upload(self, content: bytes = ROW, purpose: str = "fine-tune") -> Response:
        file = ("rows.jsonl", content)
        return self._http.post("/v1/files", data={"purpose": purpose}, files={"file": file}, headers=self._headers)

    def batch(self, file: str) -> Response:
        body = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
        return self.post("/v1/batches", body)

    def job(self, file: str) -> Response:
        return self.post("/v1/jobs", {"type": "sft", "parameters": {"model": "echo", "dataset": [file]}})

    def post(self, path: str, body: dict[str, Any] | None = None) -> Response:
        return self._http.post(path, json=body or {}, headers=self._headers)

    def delete(self, path: str) -> Response:
        return self._http.delete(path, headers=self._headers)


Serve = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @contextmanager
    def serve(**params: Any) -> Iterator[ReadyClient]:
        engine = EchoEngine(faults=EchoFaults(token_delay=0.05))
        with echo_client(engine, state_dir=str(as_state(tmp_path)), max_running_jobs=0, **params) as http:
            yield http

    return serve


def check_refused(reply: Response, parameter: str) -> None:
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["type"]) == (429, "quota_exceeded", "rate_limit_error"), error
    assert f"({parameter})" in error["message"]


def test_each_key_may_have_so_many_files(serve: Serve) -> None:
    with serve(max_files=2, api_key=[f"{name}={key}" for name, key in KEYS.items()]) as http:
        ann, bob = Client(http, "ann"), Client(http, "bob")
        files = [ann.upload().json()["id"] for _ in range(2)]
        check_refused(ann.upload(), "max_files")
        assert bob.upload().status_code == 200
        ann.delete(f"/v1/files/{files[0]}")
        assert ann.upload().status_code == 200


def test_files_may_come_to_so_many_bytes(serve: Serve, tmp_path: Path) -> None:
    with serve(max_files_size=3 * len(ROW) / 2**30) as http:
        client = Client(http)
        assert client.upload(ROW * 2).status_code == 200
        check_refused(client.upload(ROW * 2), "max_files_size")
        assert client.upload(ROW).status_code == 200
        check_refused(client.upload(ROW), "max_files_size")
    assert len([*tmp_path.glob("files/*/*")]) == 2


def test_batches_that_are_not_over_are_so_many(serve: Serve, tmp_path: Path) -> None:
    with serve(max_queued_batches=1) as http:
        client = Client(http)
        file = client.upload(REQUEST, "batch").json()["id"]
        batch = client.batch(file).json()["id"]
        check_refused(client.batch(file), "max_queued_batches")
        assert len([*tmp_path.glob("batches/*/*")]) == 1
        client.post(f"/v1/batches/{batch}/cancel")
        while client.batch(file).status_code == 429:
            pass


def test_jobs_that_wait_are_so_many(serve: Serve, tmp_path: Path) -> None:
    with serve(max_queued_jobs=1) as http:
        client = Client(http)
        file = client.upload().json()["id"]
        first = client.job(file).json()["id"]
        check_refused(client.job(file), "max_queued_jobs")
        assert len([*tmp_path.glob("jobs/*/*")]) == 1
        assert client.post(f"/v1/jobs/{first}/cancel").status_code == 200
        second = client.job(file).json()["id"]
        check_refused(client.post(f"/v1/jobs/{first}/retry"), "max_queued_jobs")
        assert client.post(f"/v1/jobs/{second}/pause").status_code == 200
        assert client.post(f"/v1/jobs/{first}/retry").status_code == 200
        check_refused(client.post(f"/v1/jobs/{second}/resume"), "max_queued_jobs")


def test_what_is_kept_for_the_database_is_not_taken(serve: Serve, tmp_path: Path) -> None:
    with serve() as http:
        client = Client(http)
        rows, requests = client.upload().json()["id"], client.upload(REQUEST, "batch").json()["id"]
    with serve(disk_reserve=2**40) as http:
        client = Client(http)
        part = client.post(
            "/v1/uploads", {"filename": "a.jsonl", "purpose": "batch", "bytes": 1, "mime_type": "text/jsonl"}
        )
        for reply in (client.upload(), part, client.batch(requests), client.job(rows)):
            assert (reply.status_code, reply.json()["error"]["code"]) == (507, "insufficient_storage"), reply.text
        chat = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
        assert client.post("/v1/chat/completions", chat).status_code == 200
        assert client.delete(f"/v1/files/{rows}").status_code == 200
    assert [len([*tmp_path.glob(f"{kept}/*/*")]) for kept in ("files", "batches", "jobs")] == [1, 0, 0]
