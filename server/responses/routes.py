"""/v1/responses: items in, items out, whole or in events."""

from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response

from engines.errors import InvalidRequest, UnsupportedParameter
from server.http.body import json_body
from server.http.description import STREAMED
from server.http.keys.deps import AccessDep
from server.http.paging import Limit
from server.http.settings import HttpDep, HttpSettings
from server.http.sse import stream_events
from server.inference.inference import ReadyInference
from server.kept.items import page_to_wire
from server.kept.responses import KeptResponsesDep
from server.model.served import ModelDep
from server.openai.tokenization import count_prompt
from server.responses.background import WATCHED, BackgroundDep, Run
from server.responses.create import Creation
from server.responses.responses import ResponsesDep
from server.responses.schema import CountedRequest, ResponsesRequest
from server.responses.words import in_own_words
from server.store.pages import Order

router = APIRouter(prefix="/v1/responses")


@router.post("", response_model=None, responses=STREAMED)
async def create_response(
    request: Request,
    body: Annotated[ResponsesRequest, json_body(ResponsesRequest)],
    responses: ResponsesDep,
    background: BackgroundDep,
    model: ModelDep,
    inference: ReadyInference,
    access: AccessDep,
    http: HttpDep,
) -> Response:
    with in_own_words():
        context = await responses.context(body, access)
        chat = await inference.pools.text.run_long(context.is_long, responses.chat, body, context)
        creation = Creation(
            request=request,
            body=body,
            context=context,
            chat=chat,
            owner=access.owner,
            responses=responses,
            model=model,
            inference=inference,
        )
        if not body.background:
            return await creation.answer(http)
        run = await creation.begin_in(background)
    if body.stream:
        return await _watched(request, run, http)
    return Response(orjson.dumps(run.seen), media_type="application/json")


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
        pool, capabilities = inference.pools.text, inference.engine.capabilities()
        chat = await pool.run_long(context.is_long, responses.chat, body, context)
        tokens = await pool.run_long(context.is_long, count_prompt, chat, model, capabilities)
    return {"object": "response.input_tokens", "input_tokens": tokens}


@router.post("/compact")
async def compact() -> None:
    raise UnsupportedParameter(
        "Conversations are not compacted here: 'truncation' of a response may drop what is oldest, and a model can be "
        "asked for a summary."
    )


@router.get("/{response_id}", response_model=None, responses=STREAMED)
async def get_response(
    request: Request,
    response_id: str,
    kept: KeptResponsesDep,
    background: BackgroundDep,
    access: AccessDep,
    http: HttpDep,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=0)] | None = None,
) -> Response:
    """As it is now, or the events of one in the background."""
    found = await kept.get(response_id, access)
    run = background.find(response_id)
    if stream:
        return await _watched(request, _watchable(run), http, -1 if starting_after is None else starting_after)
    if starting_after is not None:
        raise InvalidRequest("'starting_after' is only allowed with 'stream'.", param="starting_after")
    return Response(orjson.dumps(found.answer if run is None else run.seen), media_type="application/json")


@router.post("/{response_id}/cancel", response_model=None)
async def cancel_response(
    response_id: str, kept: KeptResponsesDep, background: BackgroundDep, access: AccessDep
) -> Response:
    answer = await background.cancel(await kept.get(response_id, access))
    return Response(orjson.dumps(answer), media_type="application/json")


@router.delete("/{response_id}")
async def delete_response(
    response_id: str, kept: KeptResponsesDep, background: BackgroundDep, access: AccessDep
) -> dict[str, Any]:
    """One that still runs is cancelled first."""
    found = await kept.get(response_id, access)
    if background.find(response_id) is not None:
        await background.cancel(found)
    await kept.delete(response_id, access)
    return {"id": response_id, "object": "response", "deleted": True}


@router.get("/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    kept: KeptResponsesDep,
    access: AccessDep,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "desc",
) -> dict[str, Any]:
    return page_to_wire(*await kept.input_items(response_id, access, after=after, limit=limit, order=order))


def _watchable(run: Run | None) -> Run:
    if run is None:
        raise InvalidRequest(
            "Events are kept of responses in the background only, and for some minutes: leave 'stream' out.",
            param="stream",
        )
    return run


async def _watched(request: Request, run: Run, http: HttpSettings, after: int = -1) -> Response:
    watch = partial(run.watch, after=after)
    return await stream_events(request, watch, keep_alive=http.keep_alive_seconds, style=WATCHED)
