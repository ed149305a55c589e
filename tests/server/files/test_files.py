"""Files over the API, with OpenAI's own client, on a server in its own process."""

import hashlib
import json
import resource
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.server.client import echo_client
from tests.server.keys import ASK, FULL, KEYS, RULE, TEACH, bearer
from tests.server.openai_schema import check
from tests.server.process import Kept, ServerProcess
from tests.server.states import as_state
from tests.until import until

LINE = b'{"messages": []}\n'


class Api(Kept):
    """What tests ask of the files of a server."""

    def contents(self) -> list[Path]:
        return sorted((self.folder / "files").glob("*/*"))

    def upload(self, name: str = "a.jsonl", content: bytes = LINE, **fields: str) -> httpx.Response:
        return self.http.post("/v1/files", data=fields, files={"file": (name, content)})

    def refused(self, reply: httpx.Response, status: int = 400) -> dict[str, Any]:
        """The error; nothing was kept of what was sent."""
        assert reply.status_code == status, reply.text
        assert self.contents() == []
        return reply.json()["error"]


@pytest.fixture
def start(start_echo: Callable[..., ServerProcess], tmp_path: Path) -> Callable[..., Api]:
    def start(**params: Any) -> Api:
        return Api(start_echo(params={"state_dir": str(as_state(tmp_path)), "verbose": False, **params}), tmp_path)

    return start


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("state")
    server = ServerProcess.echo(params={"state_dir": str(as_state(folder)), "max_file_size": 2, "verbose": False})
    server.wait_until_listening()
    yield Api(server, folder)
    server.close()


@pytest.fixture
def api(shared: Api) -> Iterator[Api]:
    yield shared
    for file in shared.client.files.list():
        shared.client.files.delete(file.id)
    assert shared.contents() == []


# ---- the life of a file


def test_a_file_is_uploaded_found_read_and_deleted(api: Api) -> None:
    content = b'{"text": "\xf0\x9f\x99\x82"}\n' * 50_000
    file = api.client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    check("OpenAIFile", file.model_dump(mode="json", exclude_unset=True))
    assert (file.bytes, file.filename, file.purpose, file.status) == (
        len(content),
        "train.jsonl",
        "fine-tune",
        "processed",
    )
    assert file.expires_at is None
    assert api.client.files.retrieve(file.id) == file
    reply = api.client.files.content(file.id)
    assert reply.content == content
    assert reply.response.headers["content-length"] == str(len(content))
    assert reply.response.headers["content-disposition"] == "attachment; filename*=UTF-8''train.jsonl"
    check("DeleteFileResponse", api.client.files.delete(file.id).model_dump(mode="json"))
    for call in (api.client.files.retrieve, api.client.files.content, api.client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(file.id)
        assert (caught.value.param, file.id in caught.value.message) == ("id", True)


def test_the_digest_of_a_content_is_kept_beside_it(api: Api) -> None:
    content = bytes(range(256)) * 7000
    api.client.files.create(file=("a.jsonl", content), purpose="batch")
    with sqlite3.connect(api.folder / "store" / "tuneserve.sqlite3") as database:
        [(digest,)] = database.execute("SELECT sha256 FROM files").fetchall()
    assert digest == hashlib.sha256(content).hexdigest()


def test_an_empty_file_is_refused(api: Api) -> None:
    error = api.refused(api.upload(content=b"", purpose="fine-tune"))
    assert (error["param"], error["code"]) == ("file", "empty_file")


def test_the_order_of_a_form_does_not_matter(api: Api) -> None:
    form = (
        b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}\r\n'
        b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n'
    )
    reply = api.http.post("/v1/files", content=form, headers={"content-type": "multipart/form-data; boundary=x"})
    assert (reply.status_code, reply.json()["bytes"]) == (200, 2)


def test_files_are_listed_in_pages(api: Api) -> None:
    purposes: tuple[Literal["batch", "fine-tune"], ...] = ("batch", "fine-tune", "batch", "fine-tune", "batch")
    made = [api.client.files.create(file=(f"{n}.jsonl", LINE), purpose=p).id for n, p in enumerate(purposes)]
    page = api.http.get("/v1/files", params={"limit": 2}).json()
    check("ListFilesResponse", page)
    assert ([file["id"] for file in page["data"]], page["has_more"]) == ([made[4], made[3]], True)
    assert (page["first_id"], page["last_id"]) == (made[4], made[3])
    assert [file.id for file in api.client.files.list(limit=2)] == made[::-1]  # the client turns the pages
    assert [file.id for file in api.client.files.list(limit=2, order="asc")] == made
    assert [file.id for file in api.client.files.list(limit=1, purpose="batch")] == made[::-2]
    assert [file.id for file in api.client.files.list(after=made[1])] == made[:1]
    assert [file.id for file in api.client.files.list(purpose="vision")] == []
    check("ListFilesResponse", api.http.get("/v1/files?purpose=vision").json())


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "order=up", "after=file-nope", "limit=x"])
def test_a_page_that_is_none_is_refused(api: Api, query: str) -> None:
    reply = api.http.get(f"/v1/files?{query}")
    assert reply.status_code == (404 if "nope" in query else 400)
    assert reply.json()["error"]["param"] == query.partition("=")[0]


# ---- how long it is kept


def test_a_file_says_when_it_expires(api: Api) -> None:
    file = api.client.files.create(
        file=("a.jsonl", LINE), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    batch = api.client.files.create(file=("a.jsonl", LINE), purpose="batch")
    assert batch.expires_at == batch.created_at + 30 * 24 * 3600


def test_a_form_may_say_so_as_json(api: Api) -> None:
    file = api.upload(purpose="batch", expires_after='{"anchor": "created_at", "seconds": 3600}').json()
    assert file["expires_at"] == file["created_at"] + 3600


def test_a_file_whose_time_has_come_is_not_found_and_is_removed(start: Callable[..., Api]) -> None:
    api = start()
    kept, gone = (api.upload(purpose=purpose).json()["id"] for purpose in ("fine-tune", "batch"))
    with sqlite3.connect(api.folder / "store" / "tuneserve.sqlite3", timeout=60) as database:
        database.execute("UPDATE files SET expires_at = ? WHERE purpose = 'batch'", (int(time.time()),))
    assert api.http.get(f"/v1/files/{gone}").status_code == 404
    assert api.http.get(f"/v1/files/{gone}/content").status_code == 404
    assert [file.id for file in api.client.files.list()] == [kept]
    api.server.close()
    again = start()
    until(lambda: [path.name for path in again.contents()] == [kept])


# ---- what is refused


@pytest.mark.parametrize("purpose", ["assistants", "vision", "user_data", "batch_output", "", "Batch"])
def test_only_three_purposes_can_be_uploaded(api: Api, purpose: str) -> None:
    error = api.refused(api.upload(purpose=purpose))
    assert error["param"] == "purpose"
    assert "'fine-tune', 'batch' or 'evals'" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "purpose", "missing_required_parameter"),
        ({"purpose": "batch", "expires_after": "1"}, "expires_after", "invalid_request"),
        ({"purpose": "batch", "expires_after": "{"}, "expires_after", "invalid_request"),
        (
            {"purpose": "batch", "expires_after": '{"seconds": 3600}'},
            "expires_after.anchor",
            "missing_required_parameter",
        ),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, "expires_after.anchor", "missing_required_parameter"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "10"},
            "expires_after.seconds",
            "invalid_request",
        ),
        (
            {"purpose": "batch", "expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "expires_after.anchor",
            "invalid_request",
        ),
        ({"purpose": "batch", "file": "x"}, "file", "invalid_request"),
    ],
)
def test_a_form_that_is_wrong_is_refused_by_the_name_of_its_field(
    api: Api, fields: dict[str, Any], param: str, code: str
) -> None:
    error = api.refused(api.upload(**fields))
    assert (error["param"], error["code"]) == (param, code)


def test_an_unknown_field_of_a_form_is_ignored_and_told(api: Api) -> None:
    reply = api.upload(purpose="batch", model="x")
    assert (reply.status_code, reply.headers["x-ignored-fields"]) == (200, "model")


def test_started_so_the_server_refuses_it() -> None:
    with echo_client(unknown_fields="refuse") as client:
        files = {"file": ("a.jsonl", b"{}")}
        error = client.post("/v1/files", data={"purpose": "batch", "model": "x"}, files=files).json()["error"]
    assert (error["param"], error["code"]) == ("model", "unknown_parameter")


def test_a_form_without_a_file_or_with_two_is_refused(api: Api) -> None:
    nothing = api.http.post("/v1/files", files={"purpose": (None, "batch")})
    assert api.refused(nothing)["code"] == "missing_required_parameter"
    twice = [("file", ("a.jsonl", b"1")), ("file", ("b.jsonl", b"2"))]
    assert api.refused(api.http.post("/v1/files", data={"purpose": "batch"}, files=twice))["param"] == "file"
    other = {"file": ("a.jsonl", b"1"), "image": ("b.jsonl", b"2")}
    reply = api.http.post("/v1/files", data={"purpose": "batch"}, files=other)
    assert api.refused(reply)["code"] == "unknown_parameter"


@pytest.mark.parametrize("names", [("expires_after", "expires_after[seconds]"), ("purpose[a]", "purpose")])
def test_a_field_that_is_a_text_and_an_object_is_refused(api: Api, names: tuple[str, str]) -> None:
    reply = api.http.post("/v1/files", data=dict.fromkeys(names, "1"), files={"file": ("a.jsonl", b"1")})
    assert api.refused(reply)["message"] == "The field is given twice."


def test_files_are_json_lines(api: Api) -> None:
    assert ".jsonl" in api.refused(api.upload("a.csv", purpose="fine-tune"))["message"]
    assert api.upload("A.JSONL", purpose="fine-tune").status_code == 200


def test_a_body_that_is_no_form_is_refused(api: Api) -> None:
    assert "multipart/form-data" in api.refused(api.http.post("/v1/files", json={"purpose": "batch"}))["message"]
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert api.refused(api.http.post("/v1/files", content=b"nonsense", headers=headers))["code"]
    reply = api.http.post("/v1/files", content=b"--x--\r\n", headers=headers | {"content-encoding": "gzip"})
    assert "gzip" in api.refused(reply)["message"]


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_that_is_too_large_is_refused(api: Api, announced: bool) -> None:
    assert api.upload(content=b"x" * (2 << 20), purpose="batch").status_code == 200
    api.client.files.delete(api.client.files.list().data[0].id)
    request = api.http.build_request(
        "POST", "/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", b"x" * ((2 << 20) + 1))}
    )
    if not announced:
        body = request.read()
        request = api.http.build_request(
            "POST", "/v1/files", content=(body[at : at + 65536] for at in range(0, len(body), 65536)),
            headers={"content-type": request.headers["content-type"]},
        )  # fmt: skip
    error = api.refused(api.http.send(request), status=413)
    assert (error["code"], "2 MiB" in error["message"]) == ("request_too_large", True)
    assert api.upload(purpose="batch").status_code == 200


def test_a_client_that_goes_away_leaves_nothing(api: Api) -> None:
    address = urlsplit(api.server.url)
    head = (
        b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2000000\r\n"
        b"content-type: multipart/form-data; boundary=x\r\n\r\n"
        b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    )
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head + b"x" * 1_500_000)
        until(lambda: any(path.stat().st_size for path in api.contents()))
        assert api.http.get("/v1/files").json()["data"] == []
    until(lambda: api.contents() == [])


def test_a_disk_without_room_is_said_and_harms_nobody(start: Callable[..., Api]) -> None:
    api = start()
    resource.prlimit(api.server.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))  # no file gets larger
    error = api.refused(api.upload(content=b"x" * (3 << 20), purpose="batch"), status=507)
    assert (error["type"], error["code"]) == ("server_error", "insufficient_storage")
    assert "no room left" in error["message"]
    assert api.upload(purpose="batch").status_code == 200


def test_many_files_are_uploaded_at_once(api: Api) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda n: api.upload(f"{n}.jsonl", b"%d" % n * 100_000, purpose="batch"), range(24)))
    assert all(reply.status_code == 200 for reply in replies)
    for number, reply in enumerate(replies):
        assert api.client.files.content(reply.json()["id"]).content == b"%d" % number * 100_000


# ---- keys


def test_a_key_sees_the_files_of_its_role(start: Callable[..., Api]) -> None:
    api = start(api_key=KEYS)

    def call(key: str, method: str, path: str, **options: Any) -> httpx.Response:
        return api.http.request(method, path, headers=bearer(key), **options)

    def upload(key: str, purpose: str) -> httpx.Response:
        return call(key, "POST", "/v1/files", data={"purpose": purpose}, files={"file": ("a.jsonl", LINE)})

    assert upload(ASK, "fine-tune").json()["error"]["param"] == "purpose"
    assert upload(TEACH, "batch").json()["error"]["param"] == "purpose"
    batch, training = upload(ASK, "batch").json()["id"], upload(TEACH, "fine-tune").json()["id"]
    for key, visible in ((ASK, {batch}), (TEACH, {training}), (FULL, {batch, training}), (RULE, {batch, training})):
        assert {file["id"] for file in call(key, "GET", "/v1/files").json()["data"]} == visible
        for id in (batch, training):
            status = 200 if id in visible else 404
            for path in (f"/v1/files/{id}", f"/v1/files/{id}/content"):
                assert call(key, "GET", path).status_code == status
    assert call(ASK, "DELETE", f"/v1/files/{training}").status_code == 404
    assert call(TEACH, "DELETE", f"/v1/files/{training}").status_code == 200


# ---- where they lie


def test_a_second_server_on_the_same_state_ends_and_says_what_to_do(
    start: Callable[..., Api], start_echo: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    first = start()
    assert first.upload(purpose="batch").status_code == 200
    second = start_echo(params={"state_dir": str(tmp_path)})
    assert second.wait() == 1
    [line] = [line for line in second.log if "The server cannot start" in line]
    assert f"another server uses the state_dir {tmp_path}: stop it, or " in line and "--without_state true" in line
    assert first.http.get("/v1/files").status_code == 200


def test_a_server_without_state_serves_the_model_alone(
    start_echo: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    api = Api(start_echo(params={"without_state": True, "verbose": False}), tmp_path)
    until(api.server.is_ready)
    for reply in (api.upload(purpose="batch"), api.http.get("/v1/files"), api.http.get("/v1/jobs")):
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict")
        assert "--without_state" in reply.json()["error"]["message"]
    chat = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
    assert api.http.post("/v1/chat/completions", json=chat).status_code == 200


def test_files_outlive_the_server_and_what_it_left_half_done_does_not(start: Callable[..., Api]) -> None:
    api = start()
    file = api.upload(purpose="batch").json()
    [content] = api.contents()
    (content.parent / "file-half.partial").write_bytes(b"half")
    (content.parent / "file-whole").write_bytes(b"whole, but without a row")
    api.server.close()
    again = start()
    assert again.http.get(f"/v1/files/{file['id']}").json() == file
    assert again.contents() == [content]
    assert again.http.get(f"/v1/files/{file['id']}/content").content == LINE


def test_only_the_servers_user_can_read_them(api: Api) -> None:
    api.upload(purpose="batch")
    [content] = api.contents()
    assert [folder.stat().st_mode & 0o777 for folder in (content.parent, content.parent.parent)] == [0o700, 0o700]


def test_the_description_tells_the_form(api: Api) -> None:
    operation = json.loads(api.http.get("/openapi.json").content)["paths"]["/v1/files"]["post"]
    schema = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert schema["required"] == ["file", "purpose"]
