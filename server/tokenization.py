"""/tokenize and /detokenize, as vLLM has them."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import FailFast, Field

from engines.errors import InvalidRequest
from server.body import RequestBody, json_body
from server.deps import ReadyServing, Serving

router = APIRouter()


class TokenizeBody(RequestBody):
    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeBody(RequestBody):
    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], FailFast()]


@router.post("/tokenize")
async def tokenize(body: Annotated[TokenizeBody, json_body(TokenizeBody)], serving: ReadyServing) -> dict[str, Any]:
    _check_model(body.model, serving)
    ids = await asyncio.to_thread(_encode, serving, body.prompt, body.add_special_tokens)
    answer = {"count": len(ids), "max_model_len": serving.engine.capabilities().max_model_len, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = serving.tokenizer.convert_ids_to_tokens(ids)
    return answer


@router.post("/detokenize")
async def detokenize(
    body: Annotated[DetokenizeBody, json_body(DetokenizeBody)], serving: ReadyServing
) -> dict[str, Any]:
    _check_model(body.model, serving)
    limit = serving.engine.capabilities().vocab_size
    if (highest := max(body.tokens, default=0)) >= limit:
        raise InvalidRequest(f"Token id {highest} is not in the vocabulary of {limit} tokens.", param="tokens")
    return {"prompt": await asyncio.to_thread(serving.tokenizer.decode, body.tokens)}


def _check_model(model: str | None, serving: Serving) -> None:
    if model is not None:
        serving.resolve(model)


def _encode(serving: Serving, text: str, add_special_tokens: bool) -> list[int]:
    ids: list[int] = serving.tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False)
    return ids
