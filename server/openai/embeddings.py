"""/v1/embeddings: texts to vectors of length one."""

import base64
import math
import struct
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import Field

from engines.capabilities import Capabilities
from engines.errors import InvalidRequest, UnsupportedParameter
from engines.text.truncation import Truncation
from server.http.body import json_body
from server.http.field_limits import Name
from server.http.keys.caller import Caller
from server.http.keys.deps import CallerDep
from server.http.sse import until_disconnect
from server.inference.inference import Inference, ReadyInference
from server.inference.pooling import Asker, pool
from server.model.served import ModelDep, ServedModel
from server.openai.inputs import Input, Inputs
from server.openai.schema import CacheSalt
from server.openai.truncation import TruncationFields

router = APIRouter(prefix="/v1")


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
    asker = Asker(caller=caller, adapter=adapter, priority=priority, cache_salt=body.cache_salt)

    def encode(vector: list[float]) -> orjson.Fragment:
        """JSON, which takes less memory than the numbers."""
        return orjson.Fragment(orjson.dumps(_encode(_shorten(vector, body.dimensions), body)))

    vectors = await pool(inference, prompts, "embed", asker, encode)
    tokens = sum(map(len, prompts))
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
