"""One upload: a form with a file, its purpose and perhaps its expiry, streamed into the storage."""

import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

import orjson

from engines.errors import InvalidRequest
from server.files.expiry import ExpiresAfter, seconds_kept
from server.files.files import Content, FileObject, Files, Purpose, UploadPurpose
from server.files.form import Field, FilePart, Form
from server.http.body import MIB, RequestBody, validate
from server.http.errors import BodyTooLarge
from server.http.ignored import Ignored
from server.http.validation import MISSING, unknown_parameter


class UploadFields(RequestBody):
    """What a form says beside the file."""

    purpose: UploadPurpose
    expires_after: ExpiresAfter | None = None


async def receive(
    form: Form,
    files: Files,
    purposes: Collection[Purpose],
    owner: str | None,
    ignored: Ignored,
    *,
    refuse_unknown: bool,
) -> FileObject:
    """The file that the form brings. Where the form is refused or breaks off, nothing is left.

    Unknown fields are refused, or added to `ignored`.
    """
    given: dict[str, str] = {}
    filename = ""
    content: Content | None = None
    async with AsyncExitStack() as stack, aclosing(form.parts()) as parts:
        async for part in parts:
            if isinstance(part, Field):
                _take(given, part)
                continue
            _check_part(part, content)
            filename = part.filename
            if "purpose" in given:  # refused before a byte is stored
                check_file(_read(given, refuse_unknown=refuse_unknown).purpose, filename, purposes)
            pieces = limited(part.pieces, files.max_bytes, "file")
            content = await stack.enter_async_context(files.storing(pieces))
        fields = _read(given, refuse_unknown=refuse_unknown)
        ignored.add(*fields.ignored)
        if content is None:
            raise InvalidRequest("Missing required parameter: 'file'.", param="file", code=MISSING)
        check_file(fields.purpose, filename, purposes)
        if not content.stored.bytes:
            raise InvalidRequest("The file is empty.", param="file", code="empty_file")
        expires_after = seconds_kept(fields.purpose, fields.expires_after)
        file = content.as_file(fields.purpose, filename, owner=owner, expires_after=expires_after)
        await files.keep_within_quota(file)
    return file


def _take(given: dict[str, str], field: Field) -> None:
    if field.name in given:
        raise _given_twice(field.name)
    if field.name == "file":
        raise InvalidRequest("The file must be sent as one: the part has no 'filename'.", param="file")
    given[field.name] = field.value


def _check_part(part: FilePart, content: Content | None) -> None:
    if part.name != "file":
        raise unknown_parameter(part.name)
    if content is not None:
        raise InvalidRequest("One upload is one file: 'file' is given twice.", param="file")


def _read(given: Mapping[str, str], *, refuse_unknown: bool) -> UploadFields:
    """Forms are flat, so that OpenAI's clients write `expires_after[seconds]`, and have no numbers. Clients that are
    made of a description write the object as JSON (OpenAPI 3.1, "Encoding Object")."""
    body: dict[str, Any] = {}
    for name, value in given.items():
        outer, _, inner = name.partition("[")
        if inner.endswith("]"):
            fields = body.setdefault(outer, {})
            if not isinstance(fields, dict):
                raise _given_twice(outer)
            fields[inner.removesuffix("]")] = int(value) if value.isdecimal() else value
        elif name in body:
            raise _given_twice(name)
        else:
            body[name] = value
    if isinstance(expiry := body.get("expires_after"), str):
        with contextlib.suppress(orjson.JSONDecodeError):  # what is none is refused as the text that it is
            body["expires_after"] = orjson.loads(expiry)
    return validate(UploadFields, body, refuse_unknown=refuse_unknown)


def _given_twice(name: str) -> InvalidRequest:
    return InvalidRequest("The field is given twice.", param=name[:100])


def check_file(purpose: UploadPurpose, filename: str, purposes: Collection[Purpose], param: str = "file") -> None:
    """Raises InvalidRequest where the caller, who has `purposes`, uploads no such file; `param` brings its name."""
    if purpose not in purposes:
        raise InvalidRequest(f"This API key uploads no files for {purpose!r}.", param="purpose")
    if not filename.lower().endswith(".jsonl"):
        raise InvalidRequest(
            f"A file for {purpose!r} is JSON Lines, and named so: it must end in .jsonl (got {filename[-60:]!r}).",
            param=param,
        )


async def limited(pieces: AsyncIterator[bytes], max_bytes: int, name: str) -> AsyncIterator[bytes]:
    """The pieces of what a form calls `name`. Raises BodyTooLarge."""
    total = 0
    async for piece in pieces:
        total += len(piece)
        if total > max_bytes:
            raise BodyTooLarge(f"The {name} is larger than {max_bytes / MIB:.3g} MiB.", param=name)
        yield piece
