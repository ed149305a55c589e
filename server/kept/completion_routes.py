"""/v1/chat/completions of the past: those that were asked for with `store`."""

from typing import Annotated, Any

from fastapi import APIRouter, Request

from server.files.files import FilesDep
from server.files.routes import purposes_of
from server.http.body import Metadata, RequestBody, json_body
from server.http.field_limits import Name
from server.http.keys.deps import AccessDep, CallerDep
from server.http.paging import Limit
from server.kept.completions import Filter, KeptCompletionsDep
from server.kept.export import ExportBody, export
from server.kept.items import page_of_items, page_to_wire
from server.store.pages import Order

router = APIRouter(prefix="/v1/chat/completions")


class MetadataBody(RequestBody):
    metadata: Metadata | None
    """Takes the place of what there was."""


@router.get("")
async def list_chat_completions(
    request: Request,
    kept: KeptCompletionsDep,
    access: AccessDep,
    model: Name | None = None,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> dict[str, Any]:
    wanted = Filter(model=model, metadata=_metadata(request))
    page, more = await kept.page(wanted, access, after=after, limit=limit, order=order)
    return page_to_wire([completion.to_wire() for completion in page], more)


@router.post("/export")
async def export_chat_completions(
    body: Annotated[ExportBody, json_body(ExportBody)], kept: KeptCompletionsDep, files: FilesDep, caller: CallerDep
) -> dict[str, Any]:
    """A file of them, for fine-tuning or evaluation."""
    file = await export(body, kept, files, caller.access, purposes_of(caller))
    return file.to_wire()


@router.get("/{completion_id}")
async def get_chat_completion(completion_id: str, kept: KeptCompletionsDep, access: AccessDep) -> dict[str, Any]:
    return (await kept.get(completion_id, access)).to_wire()


@router.get("/{completion_id}/messages")
async def get_chat_completion_messages(
    completion_id: str,
    kept: KeptCompletionsDep,
    access: AccessDep,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> dict[str, Any]:
    """The messages that it answered."""
    completion = await kept.get(completion_id, access)
    return page_to_wire(*page_of_items(completion.messages, after=after, limit=limit, order=order))


@router.post("/{completion_id}")
async def update_chat_completion(
    completion_id: str,
    body: Annotated[MetadataBody, json_body(MetadataBody)],
    kept: KeptCompletionsDep,
    access: AccessDep,
) -> dict[str, Any]:
    return (await kept.update(completion_id, access, body.metadata or {})).to_wire()


@router.delete("/{completion_id}")
async def delete_chat_completion(completion_id: str, kept: KeptCompletionsDep, access: AccessDep) -> dict[str, Any]:
    await kept.delete(completion_id, access)
    return {"object": "chat.completion.deleted", "id": completion_id, "deleted": True}


def _metadata(request: Request) -> dict[str, str]:
    """OpenAI's clients write `metadata[key]=value`."""
    return {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
