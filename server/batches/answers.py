"""Answers the requests of a batch as the routes would, without HTTP: same checks, same answers, same errors."""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from engines.errors import EngineFailure, EngineUnavailable, InvalidRequest, QueueFull, RateLimited
from engines.logs import about
from engines.types import BATCH_PRIORITY
from server.http.body import RequestBody, parse_object
from server.http.errors import error_body, error_status
from server.http.keys.caller import Caller
from server.inference.inference import Inference
from server.kept.completions import KeptCompletions
from server.model.served import ServedModel
from server.openai import embeddings
from server.openai.chat import CHAT
from server.openai.completions import COMPLETIONS
from server.openai.embeddings import EmbeddingsBody
from server.openai.keeping import keeping
from server.openai.pipeline import Body, Endpoint, admit
from server.openai.schema import ChatRequest, CompletionRequest
from server.pooling import classify, rerank, score
from server.pooling.asking import Asking, ask
from server.pooling.schema import ClassifyBody, PoolingFields, RerankBody, ScoreBody
from server.responses.responses import Responses
from server.responses.schema import ResponsesRequest
from server.responses.words import in_own_words

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.05
"""Seconds between two looks whether the engine can take the request."""
MAX_FAILURES = 3
"""Deaths of the engine under one request before the request is refused."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    request_id: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answering:
    """Who asks, what answers, and where answers are kept."""

    caller: Caller
    model: ServedModel
    inference: Inference
    kept: KeptCompletions
    responses: Responses
    refuse_unknown: bool = False
    """Whether unknown fields are refused, or ignored: there is no header to tell of them."""
    gives_way: bool = True
    """Whether others who wait for the engine go first."""


async def answer(by: Answering, endpoint: str, body: dict[str, Any]) -> Reply:
    """The answer to one request, be it an error. Waits while the engine cannot take it.

    Raises RateLimited where the caller may ask it only later.
    """
    request_id = f"req-{uuid.uuid4().hex}"
    with about(request_id):
        parse = partial(parse_object, BODIES[endpoint], body, refuse_unknown=by.refuse_unknown)
        return await _answer(by, endpoint, parse, request_id)


async def _answer(by: Answering, endpoint: str, parse: Callable[[], RequestBody], request_id: str) -> Reply:
    failures = 0
    while True:
        try:
            by.inference.lifecycle.check_ready()
            if by.gives_way and by.inference.engine.stats().waiting:
                raise QueueFull("Others wait: they go first.")
            body = await by.inference.pools.text.run(parse)
            return Reply(200, request_id, await ENDPOINTS[endpoint](by, body))
        except (QueueFull, EngineUnavailable):
            await asyncio.sleep(RETRY_SECONDS)
        except RateLimited:  # the tokens of batches count; how many requests run is the batches' own business
            raise
        except EngineFailure as error:
            failures += 1
            if failures == MAX_FAILURES:
                return _refusal(error, request_id)
        except Exception as error:  # noqa: BLE001 (whatever it is, the other requests go on)
            return _refusal(error, request_id)


def _refusal(error: Exception, request_id: str) -> Reply:
    return Reply(error_status(error), request_id, error_body(error, request_id))


async def _chat(by: Answering, body: ChatRequest) -> dict[str, Any]:
    return await _generate(keeping(CHAT, body, by.kept, by.caller), by, body)


async def _responses(by: Answering, body: ResponsesRequest) -> dict[str, Any]:
    if body.background:
        raise InvalidRequest("Requests of a batch cannot go on in the background.", param="background")
    with in_own_words():
        context = await by.responses.context(body, by.caller.access)
        chat = await by.inference.pools.text.run(by.responses.chat, body, context)
        endpoint = by.responses.keeping(body, context, by.model, by.caller.access.owner)
        return await _generate(endpoint, by, chat)


async def _generate(endpoint: Endpoint[Body], by: Answering, body: Body) -> dict[str, Any]:
    if body.stream:
        raise InvalidRequest("Requests of a batch cannot be streamed.", param="stream")
    _refuse_priority(body)
    body = body.model_copy(update={"priority": BATCH_PRIORITY})
    with ExitStack() as held:
        return await (await admit(endpoint, body, by.caller, by.model, by.inference, held)).whole()


async def _embeddings(by: Answering, body: EmbeddingsBody) -> dict[str, Any]:
    with ExitStack() as held:
        leased = await by.inference.lease(body.model, by.caller.access, held)
        return await embeddings.answer(body, by.caller, by.model, by.inference, leased.version, priority=BATCH_PRIORITY)


async def _pooled(
    answer: Callable[[Asking[Any]], Awaitable[dict[str, Any]]], by: Answering, body: PoolingFields
) -> dict[str, Any]:
    _refuse_priority(body)
    with ExitStack() as held:
        return await answer(await ask(body, by.caller, by.model, by.inference, held, priority=BATCH_PRIORITY))


def _refuse_priority(body: RequestBody) -> None:
    if "priority" in body.model_fields_set:
        raise InvalidRequest("Requests of a batch all have the same, low priority.", param="priority")


BODIES: dict[str, type[RequestBody]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingsBody,
    "/v1/responses": ResponsesRequest,
    "/v1/classify": ClassifyBody,
    "/v1/score": ScoreBody,
    "/v1/rerank": RerankBody,
}
ENDPOINTS: dict[str, Callable[[Answering, Any], Awaitable[dict[str, Any]]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": partial(_generate, COMPLETIONS),
    "/v1/embeddings": _embeddings,
    "/v1/responses": _responses,
    "/v1/classify": partial(_pooled, classify.answer),
    "/v1/score": partial(_pooled, score.answer),
    "/v1/rerank": partial(_pooled, rerank.answer),
}
