"""/v1/responses: items in, items out, whole or in events."""

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request, Response

from server.http.body import json_body
from server.http.keys.caller import AccessDep
from server.http.settings import HttpDep
from server.http.sse import stream_events, until_disconnect
from server.inference.inference import ReadyInference
from server.kept.items import page_to_wire
from server.kept.responses import KeptResponsesDep
from server.model.served import ModelDep
from server.openai.pipeline import begin
from server.responses.responses import ResponsesDep
from server.responses.schema import CountedRequest, ResponsesRequest
from server.responses.tokens import count
from server.responses.words import in_own_words, renamed

router = APIRouter(prefix="/v1/responses")


@router.post("", response_model=None)
async def create_response(
    request: Request,
    body: Annotated[ResponsesRequest, json_body(ResponsesRequest)],
    responses: ResponsesDep,
    model: ModelDep,
    inference: ReadyInference,
    access: AccessDep,
    http: HttpDep,
) -> Response:
    with in_own_words():
        context = await responses.context(body, access)
        chat = await inference.pools.text.run_long(context.is_long, responses.chat, body, context)
        endpoint = responses.endpoint(body, context, model, access.owner)
        answer = await begin(endpoint, request, chat, model, inference)
        request.state.ignored.add(*map(renamed, chat.ignored))
        if body.stream:
            return await stream_events(request, answer.stream, keep_alive=http.keep_alive_seconds, style=answer.events)
        whole = await until_disconnect(request, answer.whole())
    return Response(orjson.dumps(whole), media_type="application/json")


@router.post("/input_tokens")
async def count_input_tokens(
    request: Request,
    body: Annotated[CountedRequest, json_body(CountedRequest)],
    responses: ResponsesDep,
    model: ModelDep,
    inference: ReadyInference,
    access: AccessDep,
) -> dict[str, Any]:
    """The tokens of the prompt that the same request would make."""
    if body.model is not None:
        model = model.as_asked(await inference.lease(body.model, access, request.state.answered))
    with in_own_words():
        context = await responses.context(body, access)
        tokens = await inference.pools.text.run_long(context.is_long, count, body, context, responses.seal, model)
    return {"object": "response.input_tokens", "input_tokens": tokens}


@router.get("/{response_id}")
async def get_response(response_id: str, kept: KeptResponsesDep, access: AccessDep) -> dict[str, Any]:
    return (await kept.get(response_id, access)).answer


@router.delete("/{response_id}")
async def delete_response(response_id: str, kept: KeptResponsesDep, access: AccessDep) -> dict[str, Any]:
    await kept.delete(response_id, access)
    return {"id": response_id, "object": "response", "deleted": True}


@router.get("/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    kept: KeptResponsesDep,
    access: AccessDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    return page_to_wire(*await kept.input_items(response_id, access, after=after, limit=limit, order=order))
