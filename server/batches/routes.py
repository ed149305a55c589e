"""/v1/batches: many requests in a file, answered while there is nothing more urgent to do."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter

from engines.errors import InvalidRequest, NotFound
from server.batches.service import BatchesDep
from server.files.expiry import ExpiresAfter
from server.files.files import FilesDep
from server.http.body import Metadata, RequestBody, json_body
from server.http.field_limits import Name
from server.http.keys.deps import AccessDep
from server.http.paging import Limit

router = APIRouter(prefix="/v1/batches")


class BatchBody(RequestBody):
    input_file_id: Name
    """A file with the purpose `batch`."""
    endpoint: Literal[
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/classify",
        "/v1/score",
        "/v1/rerank",
    ]
    completion_window: Literal["24h"]
    """What has not been answered then never will be."""
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


@router.post("")
async def create_batch(
    body: Annotated[BatchBody, json_body(BatchBody)], files: FilesDep, batches: BatchesDep, access: AccessDep
) -> dict[str, Any]:
    try:
        file = await files.get(body.input_file_id, access)
    except NotFound as error:
        raise NotFound(error.message, param="input_file_id") from None
    if file.purpose != "batch":
        raise InvalidRequest(
            f"The file {file.id} has the purpose {file.purpose!r}, not 'batch'.", param="input_file_id"
        )
    batch = await batches.create(
        access,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        metadata=body.metadata,
        output_expires_after=None if body.output_expires_after is None else body.output_expires_after.seconds,
    )
    return batch.to_wire()


@router.get("")
async def list_batches(
    batches: BatchesDep, access: AccessDep, after: str | None = None, limit: Limit = 20
) -> dict[str, Any]:
    page, more = await batches.page(access, after=after, limit=limit)
    ends = {"first_id": page[0].id, "last_id": page[-1].id} if page else {}
    return {"object": "list", "data": [batch.to_wire() for batch in page], **ends, "has_more": more}


@router.get("/{batch_id}")
async def get_batch(batch_id: str, batches: BatchesDep, access: AccessDep) -> dict[str, Any]:
    return (await batches.get(batch_id, access)).to_wire()


@router.post("/{batch_id}/cancel")
async def cancel_batch(batch_id: str, batches: BatchesDep, access: AccessDep) -> dict[str, Any]:
    """What has been answered is kept; what is being answered is broken off."""
    return (await batches.cancel(batch_id, access)).to_wire()
