"""Forms as they come in: any cut of the bytes gives the same parts; what is no form is refused."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from engines.errors import InvalidRequest
from server.files.form import MAX_PARTS, Field, Form

Parts = list[tuple[str, ...]]


async def read(content_type: str, *pieces: bytes) -> Parts:
    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    found: Parts = []
    async for part in Form(content_type, stream()).parts():
        if isinstance(part, Field):
            found.append((part.name, part.value))
        else:
            content = b"".join([piece async for piece in part.pieces])
            found.append((part.name, part.filename, content.decode("latin-1")))
    return found


def encode(data: dict[str, Any], files: dict[str, Any]) -> tuple[str, bytes]:
    request = httpx.Request("POST", "http://x", data=data, files=files)
    return request.headers["content-type"], request.read()


async def test_however_the_bytes_are_cut_the_parts_are_the_same() -> None:
    content = b"\r\n--\r\n\r\n--bound\x00\xff"
    content_type, body = encode({"purpose": "batch", "x": ""}, {"file": ("a.jsonl", content)})
    expected = [("purpose", "batch"), ("x", ""), ("file", "a.jsonl", content.decode("latin-1"))]
    for size in (1, 2, 3, 7, len(body)):
        assert await read(content_type, *(body[at : at + size] for at in range(0, len(body), size))) == expected


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("train.jsonl", "train.jsonl"),
        ("数据.jsonl", "数据.jsonl"),
        ('say "hi".jsonl', 'say "hi".jsonl'),
        ("../../etc/passwd.jsonl", "passwd.jsonl"),
        ("C:\\data\\train.jsonl", "train.jsonl"),
        ("a\r\nb\x1b.jsonl", "a__b_.jsonl"),
        ("x" * 300, "x" * 255),
        ("x" * 300 + ".jsonl", "x" * 249 + ".jsonl"),
    ],
)
async def test_a_filename_is_its_last_part(sent: str, kept: str) -> None:
    [part] = await read(*encode({}, {"file": (sent, b"")}))
    assert part == ("file", kept, "")


async def test_a_form_that_breaks_off_is_refused_wherever_it_does() -> None:
    content_type, body = encode({"purpose": "batch"}, {"file": ("a", b"content")})
    for end in range(len(body) - 4):
        with pytest.raises(InvalidRequest, match=r"breaks off|not a multipart form"):
            await read(content_type, body[:end])


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "",
        "multipart/form-data",
        "multipart/mixed; boundary=x",
        f"multipart/form-data; boundary={'x' * 300}",
    ],
)
async def test_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidRequest, match="form"):
        await read(content_type, b"--x--\r\n")


@pytest.mark.parametrize("body", [b"no boundary", b"--x\r\nno header\r\n\r\n", b"--x\r\n" + b"a" * 20_000, b"\x00"])
async def test_what_is_no_form_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"breaks off|not a multipart form"):
        await read("multipart/form-data; boundary=x", body)


async def test_fields_are_short_and_few() -> None:
    with pytest.raises(InvalidRequest, match="longer than"):
        await read(*encode({"purpose": "x" * 2000}, {"file": ("a", b"")}))
    with pytest.raises(InvalidRequest, match="more than"):
        await read(*encode({f"x{number}": "1" for number in range(MAX_PARTS)}, {"file": ("a", b"")}))
