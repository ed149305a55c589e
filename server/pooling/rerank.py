"""/rerank and /v1/rerank, as Jina and vLLM have it, and /v2/rerank, as Cohere has it: documents by their relevance."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from server.http.body import json_body
from server.http.keys.deps import CallerDep
from server.inference.inference import ReadyInference
from server.model.served import ModelDep
from server.pooling import pairs
from server.pooling.activation import sigmoid
from server.pooling.asking import Asking, respond
from server.pooling.pairs import Texts, texts_of
from server.pooling.schema import CohereRerankBody, RerankBody

router = APIRouter()


@router.post("/v1/rerank", response_model=None)
@router.post("/rerank", response_model=None, name="rerank_without_version")
async def rerank(
    request: Request,
    body: Annotated[RerankBody, json_body(RerankBody)],
    caller: CallerDep,
    model: ModelDep,
    inference: ReadyInference,
) -> Response:
    return await respond(request, body, caller, model, inference, answer)


@router.post("/v2/rerank", response_model=None)
async def rerank_for_cohere(
    request: Request,
    body: Annotated[CohereRerankBody, json_body(CohereRerankBody)],
    caller: CallerDep,
    model: ModelDep,
    inference: ReadyInference,
) -> Response:
    return await respond(request, body, caller, model, inference, answer_for_cohere)


async def answer(asking: Asking[RerankBody]) -> dict[str, Any]:
    results, tokens = await _results(asking)
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "model": asking.body.model or asking.model.name,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def answer_for_cohere(asking: Asking[CohereRerankBody]) -> dict[str, Any]:
    results, tokens = await _results(asking)
    meta = {"api_version": {"version": "2", "is_experimental": False}, "tokens": {"input_tokens": tokens}}
    return {"id": str(uuid.uuid4()), "results": results, "meta": meta}


async def _results(asking: Asking[Any]) -> tuple[list[dict[str, Any]], int]:
    """The most relevant first, documents of one score in the order in which they came; and the tokens of all."""
    body: RerankBody = asking.body
    documents = texts_of(body.documents)
    query = body.query if isinstance(body.query, str) else list(body.query)
    texts = Texts(queries=[query], documents=documents, names=("query", "documents"))
    # Between 0 and 1, also where the head's number has no bounds: the order is the same.
    scored = await pairs.score(asking, texts, (lambda logit: logit) if body.activates is False else sigmoid)
    order = sorted(range(len(documents)), key=lambda index: -scored.scores[index])
    results: list[dict[str, Any]] = []
    for index in order[: body.top_n or None]:
        result: dict[str, Any] = {"index": index, "relevance_score": scored.scores[index]}
        if body.return_documents:
            result["document"] = {"text": documents[index]}
        results.append(result)
    return results, scored.tokens
