"""Answers the requests of a batch as the routes would, without HTTP: same checks, same answers, same errors."""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from engines.errors import EngineFailure, EngineUnavailable, InvalidRequest, QueueFull
from engines.logs import about
from server.batches.priority import BATCH_PRIORITY
from server.deps import Serving
from server.http.body import parse_object
from server.http.errors import error_body, error_status
from server.openai import chat, completions, embeddings
from server.openai.convert import check_request
from server.openai.embeddings import EmbeddingsBody
from server.openai.generation import Answer
from server.openai.schema import ChatRequest, CompletionRequest, GenerationFields

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.05
"""Between two looks whether the engine can take it."""
MAX_FAILURES = 3
"""An engine that dies of a request again and again is spared it."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    request_id: str
    body: dict[str, Any]


async def answer(serving: Serving, endpoint: str, body: dict[str, Any]) -> Reply:
    """The answer to one request, be it an error. Waits while the engine cannot take it."""
    request_id = f"req-{uuid.uuid4().hex}"
    with about(request_id):
        return await _answer(serving, endpoint, body, request_id)


async def _answer(serving: Serving, endpoint: str, body: dict[str, Any], request_id: str) -> Reply:
    failures = 0
    while True:
        try:
            serving.lifecycle.check_ready()
            if serving.engine.stats().waiting:
                raise QueueFull("Others wait: they go first.")
            return Reply(200, request_id, await ENDPOINTS[endpoint](serving, body))
        except (QueueFull, EngineUnavailable):
            await asyncio.sleep(RETRY_SECONDS)
        except EngineFailure as error:
            failures += 1
            if failures == MAX_FAILURES:
                return _refusal(error, request_id)
        except Exception as error:  # noqa: BLE001 (whatever it is, the other requests go on)
            return _refusal(error, request_id)


def _refusal(error: Exception, request_id: str) -> Reply:
    return Reply(error_status(error), request_id, error_body(error, request_id))


async def _chat(serving: Serving, body: dict[str, Any]) -> dict[str, Any]:
    return await _generate(serving, parse_object(ChatRequest, body), chat.prepare)


async def _completions(serving: Serving, body: dict[str, Any]) -> dict[str, Any]:
    return await _generate(serving, parse_object(CompletionRequest, body), completions.prepare)


async def _generate(
    serving: Serving, body: Any, prepare: Callable[[Any, Serving, str | None], Awaitable[Answer]]
) -> dict[str, Any]:
    assert isinstance(body, GenerationFields)
    if body.stream:
        raise InvalidRequest("Requests of a batch cannot be streamed.", param="stream")
    if "priority" in body.model_fields_set:
        raise InvalidRequest("Requests of a batch all have the same, low priority.", param="priority")
    check_request(body)
    leased = await serving.registry.lease(body.model)
    try:
        ready = await prepare(body.model_copy(update={"priority": BATCH_PRIORITY}), serving, leased.version)
        return await ready.completion()
    finally:
        leased.release()


async def _embeddings(serving: Serving, body: dict[str, Any]) -> dict[str, Any]:
    request = parse_object(EmbeddingsBody, body)
    leased = await serving.registry.lease(request.model)
    try:
        return await embeddings.answer(request, serving, leased.version, priority=BATCH_PRIORITY)
    finally:
        leased.release()


ENDPOINTS: dict[str, Callable[[Serving, dict[str, Any]], Awaitable[dict[str, Any]]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/embeddings": _embeddings,
}
