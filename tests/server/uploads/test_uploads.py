"""Files in parts over the API, with OpenAI's own client, on a server in its own process."""

import asyncio
import hashlib
import resource
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai.types import Upload

from tests.server.client import echo_client
from tests.server.openai_schema import check
from tests.server.process import Kept, ServerProcess
from tests.server.states import as_state
from tests.until import until

CONTENT = b'{"messages": []}\n' * 5000
CREATION: dict[str, Any] = {
    "filename": "a.jsonl",
    "purpose": "fine-tune",
    "bytes": len(CONTENT),
    "mime_type": "text/jsonl",
}


class Api(Kept):
    """What tests ask of the uploads of a server."""

    def contents(self) -> list[str]:
        """Beginnings of the ids of what is stored."""
        return sorted(path.name[:4] for path in (self.folder / "files").glob("*/*"))

    def create(self, **fields: Any) -> Upload:
        return self.client.uploads.create(**{**CREATION, **fields})

    def add(self, upload: Upload, content: bytes) -> str:
        return self.client.uploads.parts.create(upload.id, data=content).id

    def complete(self, upload: Upload, *ids: str, **fields: str) -> httpx.Response:
        return self.http.post(f"/v1/uploads/{upload.id}/complete", json={"part_ids": ids, **fields})

    def ends_early(self, upload: Upload) -> None:
        """Its hour is over."""
        with sqlite3.connect(self.folder / "store" / "tuneserve.sqlite3", timeout=60) as database:
            for table, column in (("uploads", "id"), ("files", "upload_id")):
                database.execute(f"UPDATE {table} SET expires_at = ? WHERE {column} = ?", (int(time.time()), upload.id))


def refused(reply: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    return reply.json()["error"]


@pytest.fixture
def start(start_echo: Callable[..., ServerProcess], tmp_path: Path) -> Callable[..., Api]:
    def start(**params: Any) -> Api:
        return Api(start_echo(params={"state_dir": str(as_state(tmp_path)), "verbose": False, **params}), tmp_path)

    return start


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("state")
    server = ServerProcess.echo(params={"state_dir": str(as_state(folder)), "max_upload_size": 1, "verbose": False})
    server.wait_until_listening()
    yield Api(server, folder)
    server.close()


@pytest.fixture
def api(shared: Api) -> Iterator[Api]:
    yield shared
    for file in shared.client.files.list():
        shared.client.files.delete(file.id)


# ---- from parts to a file


@pytest.mark.parametrize("in_memory", [True, False])
def test_openais_client_uploads_a_file_in_chunks(api: Api, tmp_path: Path, in_memory: bool) -> None:
    (tmp_path / "train.jsonl").write_bytes(CONTENT)
    source: dict[str, Any] = {"file": tmp_path / "train.jsonl"}
    if in_memory:
        source = {"file": CONTENT, "filename": "train.jsonl", "bytes": len(CONTENT)}
    md5 = hashlib.md5(CONTENT).hexdigest()
    upload = api.client.uploads.upload_file_chunked(
        **source, mime_type="text/jsonl", purpose="fine-tune", part_size=30_000, md5=md5
    )
    check("Upload", upload.model_dump(mode="json", exclude_unset=True))
    assert (upload.status, upload.expires_at - upload.created_at) == ("completed", 3600)
    assert upload.file is not None and upload.file == api.client.files.retrieve(upload.file.id)
    assert (upload.file.filename, upload.file.purpose) == ("train.jsonl", "fine-tune")
    assert (upload.file.bytes, upload.file.expires_at) == (len(CONTENT), None)
    assert api.client.files.content(upload.file.id).content == CONTENT
    assert api.contents() == ["file"]


async def test_its_asynchronous_client_does_too(api: Api) -> None:
    async with openai.AsyncOpenAI(base_url=f"{api.server.url}/v1", api_key="none") as client:
        upload = await client.uploads.create(**CREATION)
        pieces = [CONTENT[at : at + 30_000] for at in range(0, len(CONTENT), 30_000)]
        parts = await asyncio.gather(*(client.uploads.parts.create(upload.id, data=piece) for piece in pieces))
        upload = await client.uploads.complete(upload.id, part_ids=[part.id for part in parts])
    assert upload.file is not None
    assert api.client.files.content(upload.file.id).content == CONTENT


def test_an_upload_and_its_parts_are_as_openai_describes_them(api: Api) -> None:
    reply = api.http.post("/v1/uploads", json=CREATION).json()
    check("Upload", reply)
    assert (reply["status"], reply["purpose"], reply["bytes"]) == ("pending", "fine-tune", len(CONTENT))
    part = api.http.post(f"/v1/uploads/{reply['id']}/parts", files={"data": ("blob", b"1")}).json()
    check("UploadPart", part)
    assert part["upload_id"] == reply["id"]
    cancelled = api.http.post(f"/v1/uploads/{reply['id']}/cancel").json()
    check("Upload", cancelled)
    assert cancelled == {**reply, "status": "cancelled"}


def test_the_file_has_the_parts_that_are_named_in_that_order(api: Api) -> None:
    upload = api.create(bytes=4)
    last, twice, first = (api.add(upload, content) for content in (b"cd", b"cd", b"ab"))
    assert api.client.files.list().data == []
    assert api.http.get(f"/v1/files/{first}").status_code == 404
    made = api.complete(upload, first, last).json()["file"]
    assert api.client.files.content(made["id"]).content == b"abcd"
    assert twice not in (first, last) and api.contents() == ["file"]


def test_a_file_expires_as_the_upload_said(api: Api) -> None:
    said: dict[str, Any] = {"expires_after": {"anchor": "created_at", "seconds": 7200}}
    for fields, seconds in ((said, 7200), ({"purpose": "batch"}, 30 * 24 * 3600)):
        upload = api.create(bytes=1, **fields)
        made = api.complete(upload, api.add(upload, b"1")).json()["file"]
        assert made["expires_at"] == made["created_at"] + seconds


def test_a_completion_asked_again_answers_with_the_same_file(api: Api) -> None:
    upload = api.create(bytes=2)
    ids = [api.add(upload, b"1"), api.add(upload, b"2")]
    with ThreadPoolExecutor(4) as pool:  # as a client does that has lost patience
        replies = [reply.json() for reply in pool.map(lambda _: api.complete(upload, *ids), range(4))]
    assert replies == [replies[0]] * 4 and api.contents() == ["file"]
    assert refused(api.complete(upload, ids[0]), 409)["code"] == "conflict"
    api.client.files.delete(replies[0]["file"]["id"])
    assert "has been deleted" in refused(api.complete(upload, *ids), 409)["message"]


def test_an_upload_that_has_ended_takes_no_more_parts(api: Api) -> None:
    done, cancelled = api.create(bytes=1), api.create(bytes=1)
    api.complete(done, api.add(done, b"1"))
    part = api.add(cancelled, b"1")
    for _ in range(2):
        assert api.client.uploads.cancel(cancelled.id).status == "cancelled"
    assert api.contents() == ["file"]
    for upload in (done, cancelled):
        reply = api.http.post(f"/v1/uploads/{upload.id}/parts", files={"data": b"1"})
        assert upload.id in refused(reply, 409)["message"]
    assert "cancelled" in refused(api.complete(cancelled, part), 409)["message"]
    assert "completed" in refused(api.http.post(f"/v1/uploads/{done.id}/cancel"), 409)["message"]


def test_after_an_hour_it_has_expired_and_its_parts_are_dropped(start: Callable[..., Api]) -> None:
    api = start()
    late, other = api.create(bytes=1), api.create(bytes=1)
    part, kept = api.add(late, b"1"), api.add(other, b"2")
    api.ends_early(late)
    replies = (
        api.http.post(f"/v1/uploads/{late.id}/parts", files={"data": b"1"}),
        api.http.post(f"/v1/uploads/{late.id}/cancel"),
        api.complete(late, part),
    )
    assert all("is expired" in refused(reply, 409)["message"] for reply in replies)
    api.server.close()
    again = start()
    until(lambda: again.contents() == ["part"])
    assert again.complete(other, kept).json()["status"] == "completed"  # what goes on outlives the server


# ---- what is refused


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "assistants"}, "purpose"),
        ({"filename": "a.csv"}, "filename"),
        ({"bytes": 0}, "bytes"),
        ({"bytes": "1"}, "bytes"),
        ({"mime_type": "application/pdf"}, "mime_type"),
        ({"mime_type": None}, "mime_type"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds"),
    ],
)
def test_an_upload_that_would_come_to_nothing_is_refused_at_once(api: Api, fields: dict[str, Any], param: str) -> None:
    assert refused(api.http.post("/v1/uploads", json={**CREATION, **fields}))["param"] == param


@pytest.mark.parametrize(
    "type", ["application/jsonl", "application/x-ndjson", "text/plain", "application/octet-stream"]
)
def test_json_lines_go_by_many_types(api: Api, type: str) -> None:
    assert api.create(mime_type=type).status == "pending"


def test_parts_that_are_not_what_was_announced_are_refused_and_kept(api: Api) -> None:
    upload, other = api.create(bytes=2), api.create(bytes=1)
    part, foreign = api.add(upload, b"1"), api.add(other, b"1")
    error = refused(api.complete(upload, part))
    assert (error["param"], "1 bytes together" in error["message"]) == ("part_ids", True)
    assert refused(api.complete(upload, part, part))["message"] == "A part is named twice."
    assert refused(api.complete(upload, part, foreign))["param"] == "part_ids[1]"
    second = api.add(upload, b"2")
    assert refused(api.complete(upload, part, second, md5="0" * 32))["param"] == "md5"
    assert refused(api.complete(upload, part, second, md5="none"))["param"] == "md5"
    assert api.client.files.list().data == []
    assert api.complete(upload, part, second, md5=hashlib.md5(b"12").hexdigest().upper()).status_code == 200
    api.client.uploads.cancel(other.id)


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"files": {"data": (None, "1")}}, "data"),
        ({"files": {"file": ("a", b"1")}}, "file"),
        ({"files": [("data", ("a", b"1")), ("data", ("b", b"2"))]}, "data"),
        ({"files": {"x": (None, "1")}}, "data"),
        ({"json": {"data": "1"}}, None),
    ],
)
def test_a_form_that_is_no_part_is_refused_by_the_name_of_its_field(
    api: Api, sent: dict[str, Any], param: str | None
) -> None:
    upload = api.create()
    assert refused(api.http.post(f"/v1/uploads/{upload.id}/parts", **sent))["param"] == param
    assert "part" not in api.contents()
    api.client.uploads.cancel(upload.id)


def test_an_unknown_field_of_a_part_is_ignored_and_told(api: Api) -> None:
    upload = api.create()
    path = f"/v1/uploads/{upload.id}/parts"
    reply = api.http.post(path, data={"x": "1"}, files={"data": ("a", b"1")})
    assert (reply.status_code, reply.headers["x-ignored-fields"]) == (200, "x")
    api.client.uploads.cancel(upload.id)
    assert "part" not in api.contents()


def test_started_so_the_server_refuses_unknown_fields_of_a_part() -> None:
    with echo_client(unknown_fields="refuse") as client:
        upload = client.post("/v1/uploads", json=CREATION).json()["id"]
        reply = client.post(f"/v1/uploads/{upload}/parts", data={"x": "1"}, files={"data": ("a", b"1")})
    assert reply.json()["error"]["code"] == "unknown_parameter"


def test_sizes_have_limits(api: Api) -> None:
    error = refused(api.http.post("/v1/uploads", json={**CREATION, "bytes": 2**20 + 1}), 413)
    assert (error["param"], "1 MiB (max_upload_size)" in error["message"]) == ("bytes", True)
    upload = api.create()
    api.add(upload, b"x" * 2**19)
    reply = api.http.post(f"/v1/uploads/{upload.id}/parts", files={"data": b"x" * (2**19 + 1)})
    assert refused(reply, 413)["param"] == "data"
    api.client.uploads.cancel(upload.id)
    address = urlsplit(api.server.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(
            f"POST /v1/uploads/{upload.id}/parts HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n"
            f"content-type: multipart/form-data; boundary=x\r\ncontent-length: {65 << 20}\r\n\r\n".encode()
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_an_upload_that_the_disk_cannot_hold_is_refused_at_once() -> None:
    with echo_client(max_upload_size=2**40, max_files_size=2**40) as client:
        reply: Any = client.post("/v1/uploads", json={**CREATION, "bytes": 2**58})
        assert refused(reply, 507)["code"] == "insufficient_storage"


def test_parts_count_for_the_quotas_of_their_owner() -> None:
    with echo_client(max_files=2, max_files_size=100 / 2**30) as client:

        def create(size: int) -> Any:
            return client.post("/v1/uploads", json={**CREATION, "bytes": size})

        def add(id: str, content: bytes) -> Any:
            return client.post(f"/v1/uploads/{id}/parts", files={"data": ("a", content)})

        assert "(max_files_size)" in refused(create(101), 429)["message"]
        id = create(60).json()["id"]
        parts = [add(id, b"x" * 59).json()["id"]]
        assert "(max_files_size)" in refused(add(id, b"x" * 42), 429)["message"]
        parts.append(add(id, b"x").json()["id"])
        assert "(max_files)" in refused(add(id, b"x"), 429)["message"]
        body = {"part_ids": parts}
        assert client.post(f"/v1/uploads/{id}/complete", json=body).json()["file"]["bytes"] == 60


# ---- what goes wrong


def test_a_client_that_goes_away_leaves_no_part(api: Api) -> None:
    upload = api.create()
    address = urlsplit(api.server.url)
    head = (
        f"POST /v1/uploads/{upload.id}/parts HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000000\r\n"
        "content-type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\ncontent-disposition: form-data; name="data"; filename="a"\r\n\r\n'
    )
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + b"x" * 1_500_000)
        until(lambda: "part" in api.contents())
    until(lambda: "part" not in api.contents())
    assert api.client.uploads.cancel(upload.id).status == "cancelled"


def test_a_disk_without_room_for_the_whole_keeps_the_parts(start: Callable[..., Api]) -> None:
    api = start()
    upload = api.create(bytes=1_600_000)
    ids = [api.add(upload, b"x" * 800_000) for _ in range(2)]
    resource.prlimit(api.server.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))  # no file gets larger
    assert refused(api.complete(upload, *ids), 507)["code"] == "insufficient_storage"
    assert api.contents() == ["part", "part"]
    resource.prlimit(api.server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert api.complete(upload, *ids).json()["file"]["bytes"] == 1_600_000
