"""/v1/embeddings: texts to vectors of length one."""

import asyncio
import base64
import math
import struct
import uuid
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import Field

from engines.capabilities import Capabilities
from engines.engine import Engine
from engines.errors import InvalidRequest, UnsupportedParameter
from engines.logs import current_http_request_id
from engines.text.truncation import Truncation
from engines.types import PoolingRequest
from server.http.body import json_body
from server.http.field_limits import Name
from server.http.keys.caller import Caller, CallerDep
from server.http.sse import until_disconnect
from server.inference.inference import Inference, ReadyInference
from server.model.served import ModelDep, ServedModel
from server.openai.inputs import Input, Inputs
from server.openai.schema import CacheSalt
from server.openai.truncation import TruncationFields

router = APIRouter(prefix="/v1")

CONCURRENCY = 16
"""Inputs of one request that the engine has at a time, so that a long list does not fill its queue."""


class EmbeddingsBody(TruncationFields):
    model: Name
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: Name | None = None
    cache_salt: CacheSalt | None = None
    """vLLM's."""


@router.post("/embeddings", response_model=None)
async def embed(
    request: Request,
    body: Annotated[EmbeddingsBody, json_body(EmbeddingsBody)],
    caller: CallerDep,
    model: ModelDep,
    inference: ReadyInference,
) -> Response:
    rate_limit = inference.rate_limits.of(caller)
    request.state.answer_headers = rate_limit.headers
    rate_limit.begin(request.state.answered)
    leased = await inference.lease(body.model, caller.access, request.state.answered)
    whole = await until_disconnect(request, answer(body, caller, model, inference, leased.version))
    return Response(orjson.dumps(whole), media_type="application/json")


async def answer(
    body: EmbeddingsBody,
    caller: Caller,
    model: ServedModel,
    inference: Inference,
    adapter: str | None,
    *,
    priority: int = 0,
) -> dict[str, Any]:
    capabilities = inference.engine.capabilities()
    if not capabilities.embeddings:
        raise UnsupportedParameter("This engine makes no embeddings.", param="model")
    prompts = await inference.pools.text.run_long(body.is_long, _prompts, body, model, capabilities)
    salt = inference.salts.of(caller.name, body.cache_salt)
    name = f"embd-{uuid.uuid4().hex}"  # the caller's own request id need not be unique
    requests = [
        PoolingRequest(
            request_id=f"{name}-{index}",
            prompt_ids=ids,
            adapter=adapter,
            priority=priority,
            share=caller.name,
            weight=inference.weight_of(caller.name),
            cache_salt=salt,
            http_request_id=current_http_request_id(),
        )
        for index, ids in enumerate(prompts)
    ]
    tokens = sum(map(len, prompts))
    inference.rate_limits.of(caller).take_prompt(tokens)
    vectors = await _embed_all(inference.engine, requests, body)
    inference.metrics.count_embeddings([len(ids) for ids in prompts], adapter)
    return {
        "object": "list",
        "model": body.model,
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _prompts(body: EmbeddingsBody, model: ServedModel, capabilities: Capabilities) -> list[list[int]]:
    truncation = body.truncation(capabilities, output=0, side="right")
    return [_to_ids(item, model, capabilities, truncation) for item in body.input]


def _to_ids(item: Input, model: ServedModel, capabilities: Capabilities, truncation: Truncation | None) -> list[int]:
    if isinstance(item, str):
        return model.renderer.text(item, capabilities, param="input", truncation=truncation).ids
    return model.renderer.ids(item, capabilities, param="input", truncation=truncation)


async def _embed_all(engine: Engine, requests: list[PoolingRequest], body: EmbeddingsBody) -> list[orjson.Fragment]:
    """The vectors as JSON, which takes less memory than their numbers."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def embed_one(request: PoolingRequest) -> orjson.Fragment:
        async with slots:
            vector = await engine.pool(request)
        return orjson.Fragment(orjson.dumps(_encode(_shorten(vector, body.dimensions), body)))

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(embed_one(request)) for request in requests]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _shorten(vector: list[float], dimensions: int | None) -> list[float]:
    """The first `dimensions` numbers, of length one again."""
    if dimensions is None:
        return vector
    if dimensions > len(vector):
        raise InvalidRequest(f"dimensions is {dimensions}, but this model has {len(vector)}.", param="dimensions")
    norm = math.sqrt(math.fsum(value * value for value in vector[:dimensions])) or 1.0
    return [value / norm for value in vector[:dimensions]]


def _encode(vector: list[float], body: EmbeddingsBody) -> list[float] | str:
    if body.encoding_format == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
