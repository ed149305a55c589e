"""/v1/files: what jobs and batches read, and what they have made."""

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from engines.errors import TuneserveError
from server.files.files import ALL_PURPOSES, FilesDep, Purpose, read_pieces
from server.files.form import Form
from server.files.upload import receive
from server.http.body import check_announced, check_encoding, linger
from server.http.keys.caller import Caller, Role
from server.http.keys.deps import CallerDep
from server.http.settings import HttpDep
from server.store.pages import Order

router = APIRouter(prefix="/v1/files")

PURPOSES: dict[Role, tuple[Purpose, ...]] = {
    Role.TRAIN: ("fine-tune", "fine-tune-results", "evals"),
    Role.INFER: ("batch", "batch_output", "evals"),
}
"""What a key sees that is no administrator's: one that only asks for answers has no business with training data."""
FORM_BYTES = 64 << 10
"""What a form may have beside its file."""
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSON Lines: a .jsonl file."},
                        "purpose": {"type": "string", "enum": ["fine-tune", "batch", "evals"]},
                        "expires_after": {
                            "type": "object",
                            "required": ["anchor", "seconds"],
                            "description": "As JSON, or as `expires_after[anchor]` and `expires_after[seconds]`.",
                            "properties": {
                                "anchor": {"type": "string", "enum": ["created_at"]},
                                "seconds": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
                            },
                        },
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=FORM)
async def upload_file(request: Request, files: FilesDep, caller: CallerDep, http: HttpDep) -> dict[str, Any]:
    files.check_open()
    check_encoding(request)
    stream = request.stream()
    await check_announced(request, stream, files.max_bytes + FORM_BYTES)
    try:
        await files.check_quota(caller.name)  # before a byte is read
        form = Form(request.headers.get("content-type", ""), stream)
        file = await receive(
            form,
            files,
            purposes_of(caller),
            caller.name,
            request.state.ignored,
            refuse_unknown=http.refuse_unknown,
        )
    except TuneserveError:
        await linger(stream)
        raise
    return file.to_wire()


@router.get("")
async def list_files(
    files: FilesDep,
    caller: CallerDep,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
    after: str | None = None,
) -> dict[str, Any]:
    purposes = [each for each in purposes_of(caller) if purpose in (None, each)]
    page, more = await files.list(caller.access, purposes, after=after, limit=limit, order=order)
    return {
        "object": "list",
        "data": [file.to_wire() for file in page],
        "first_id": page[0].id if page else "",
        "last_id": page[-1].id if page else "",
        "has_more": more,
    }


@router.get("/{file_id}")
async def get_file(file_id: str, files: FilesDep, caller: CallerDep) -> dict[str, Any]:
    return (await files.get(file_id, caller.access, purposes_of(caller))).to_wire()


@router.get("/{file_id}/content", response_class=StreamingResponse)
async def get_file_content(request: Request, file_id: str, files: FilesDep, caller: CallerDep) -> StreamingResponse:
    file, content = await files.read(file_id, caller.access, purposes_of(caller))
    request.state.answered.callback(content.close)
    headers = {
        "content-length": str(file.bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
    }
    return StreamingResponse(read_pieces(content), headers=headers, media_type="application/octet-stream")


@router.delete("/{file_id}")
async def delete_file(file_id: str, files: FilesDep, caller: CallerDep) -> dict[str, Any]:
    """What runs with the file goes on: it has the content for itself."""
    await files.delete(file_id, caller.access, purposes_of(caller))
    return {"id": file_id, "object": "file", "deleted": True}


def purposes_of(caller: Caller) -> Sequence[Purpose]:
    if caller.is_admin:
        return ALL_PURPOSES
    return [purpose for role, purposes in PURPOSES.items() if role in caller.roles for purpose in purposes]
