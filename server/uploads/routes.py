"""/v1/uploads: a large file in parts, which become one of /v1/files."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from engines.errors import InvalidRequest, TuneserveError
from server.files.expiry import ExpiresAfter, seconds_kept
from server.files.files import UploadPurpose
from server.files.form import Form, plain_filename
from server.files.routes import FORM_BYTES, purposes_of
from server.files.upload import check_file
from server.http.body import Items, RequestBody, check_announced, check_encoding, json_body, linger
from server.http.field_limits import MAX_NAME, GivenName, Name
from server.http.keys.deps import CallerDep
from server.http.settings import HttpDep
from server.uploads.part import MAX_PART_BYTES, receive_part
from server.uploads.uploads import MAX_PARTS, UploadsDep, new_upload

router = APIRouter(prefix="/v1/uploads")

PLAIN_TYPES = ("text/plain", "application/octet-stream")
"""MIME types that JSON Lines go by, beside those that say so themselves."""
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary", "description": "64 MiB at most."}},
                }
            }
        },
    }
}


class UploadBody(RequestBody):
    filename: GivenName
    purpose: UploadPurpose
    bytes: int = Field(ge=1)
    """Of the whole file."""
    mime_type: GivenName
    """Of JSON Lines: one that names JSON, `text/plain` or `application/octet-stream`."""
    expires_after: ExpiresAfter | None = None


class CompletionBody(RequestBody):
    part_ids: Annotated[Items[Name], Field(max_length=MAX_PARTS)]
    """The parts in the order of the file."""
    md5: Annotated[str | None, Field(max_length=MAX_NAME, pattern="^[0-9a-fA-F]{32}$")] = None
    """Of the whole file, in hexadecimal: it is checked."""


@router.post("")
async def create_upload(
    body: Annotated[UploadBody, json_body(UploadBody)], uploads: UploadsDep, caller: CallerDep
) -> dict[str, Any]:
    filename = plain_filename(body.filename)
    check_file(body.purpose, filename, purposes_of(caller), param="filename")
    if "json" not in body.mime_type.lower() and body.mime_type.lower() not in PLAIN_TYPES:
        raise InvalidRequest(
            f"A file for {body.purpose!r} is JSON Lines, which {body.mime_type[:60]!r} is not: give 'text/jsonl'.",
            param="mime_type",
        )
    expires_after = seconds_kept(body.purpose, body.expires_after)
    upload = new_upload(
        owner=caller.name, purpose=body.purpose, filename=filename, size=body.bytes, file_expires_after=expires_after
    )
    await uploads.create(upload)
    return upload.to_wire()


@router.post("/{upload_id}/parts", openapi_extra=FORM)
async def add_upload_part(
    request: Request, upload_id: str, uploads: UploadsDep, caller: CallerDep, http: HttpDep
) -> dict[str, Any]:
    uploads.check_open()
    check_encoding(request)
    stream = request.stream()
    await check_announced(request, stream, MAX_PART_BYTES + FORM_BYTES)
    try:
        upload = await uploads.get(upload_id, caller.access, purposes_of(caller))
        upload.check_pending()  # before a byte is read
        form = Form(request.headers.get("content-type", ""), stream)
        part = await receive_part(form, uploads, upload, request.state.ignored, refuse_unknown=http.refuse_unknown)
    except TuneserveError:
        await linger(stream)
        raise
    return {"id": part.id, "object": "upload.part", "created_at": part.created_at, "upload_id": upload.id}


@router.post("/{upload_id}/complete")
async def complete_upload(
    upload_id: str,
    body: Annotated[CompletionBody, json_body(CompletionBody)],
    uploads: UploadsDep,
    caller: CallerDep,
) -> dict[str, Any]:
    purposes = purposes_of(caller)
    upload, file = await uploads.complete(upload_id, caller.access, purposes, body.part_ids, body.md5)
    return upload.to_wire(file)


@router.post("/{upload_id}/cancel")
async def cancel_upload(upload_id: str, uploads: UploadsDep, caller: CallerDep) -> dict[str, Any]:
    """Its parts are dropped."""
    return (await uploads.cancel(upload_id, caller.access, purposes_of(caller))).to_wire()
