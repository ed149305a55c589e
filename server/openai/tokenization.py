"""/tokenize and /detokenize, as vLLM has them."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from engines.errors import InvalidRequest
from server.http.body import Items, RequestBody, json_body
from server.http.caller import AccessDep
from server.http.limits import MAX_TOKENS, Name, Text
from server.http.validation import MISSING
from server.inference.inference import ReadyInference
from server.model.served import ModelDep, ServedModel
from server.model.tools import read_tools
from server.openai.conversation import check_conversation, to_conversation
from server.openai.schema import ChatMessage, ConversationFields, Messages

router = APIRouter()


class TokenizeBody(ConversationFields):
    """A text, or the messages of a chat as its prompt would hold them."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["prompt"]}, {"required": ["messages"]}]})

    model: Name | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    """Unless given, they are added to a text; a chat template writes its own."""
    return_token_strs: bool = False


class DetokenizeBody(RequestBody):
    model: Name | None = None
    tokens: Annotated[Items[Annotated[int, Field(ge=0)]], Field(max_length=MAX_TOKENS)]


@router.post("/tokenize")
async def tokenize(
    request: Request,
    body: Annotated[TokenizeBody, json_body(TokenizeBody)],
    model: ModelDep,
    inference: ReadyInference,
    access: AccessDep,
) -> dict[str, Any]:
    if body.model is not None:
        model = model.as_asked(await inference.lease(body.model, access, request.state.answered))
    ids = await asyncio.to_thread(_encode, body, model)
    answer = {"count": len(ids), "max_model_len": inference.engine.capabilities().max_model_len, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = model.tokenizer.convert_ids_to_tokens(ids)
    return answer


@router.post("/detokenize")
async def detokenize(
    request: Request,
    body: Annotated[DetokenizeBody, json_body(DetokenizeBody)],
    model: ModelDep,
    inference: ReadyInference,
    access: AccessDep,
) -> dict[str, Any]:
    if body.model is not None:  # adapters have the base model's tokens: it is enough that the model is there
        await inference.lease(body.model, access, request.state.answered)
    limit = inference.engine.capabilities().vocab_size
    if (highest := max(body.tokens, default=0)) >= limit:
        raise InvalidRequest(f"Token id {highest} is not in the vocabulary of {limit} tokens.", param="tokens")
    return {"prompt": await asyncio.to_thread(model.tokenizer.decode, body.tokens)}


def _encode(body: TokenizeBody, model: ServedModel) -> list[int]:
    text, adds = _text(body, model)
    return model.renderer.encode(
        text, add_special_tokens=adds if body.add_special_tokens is None else body.add_special_tokens
    )


def _text(body: TokenizeBody, model: ServedModel) -> tuple[str, bool]:
    """The text to tokenize, and whether special tokens are added to it where the request does not say."""
    if body.messages is not None:
        if body.prompt is not None:
            raise InvalidRequest("'prompt' and 'messages' exclude each other.", param="messages")
        return _rendered(body, body.messages, model), False
    if body.prompt is None:
        raise InvalidRequest("Either 'prompt' or 'messages' must be given.", param="prompt", code=MISSING)
    vain = sorted(ConversationFields.model_fields.keys() & body.model_fields_set)
    if vain:
        raise InvalidRequest(f"{vain[0]!r} is only allowed with 'messages'.", param=vain[0])
    return body.prompt, True


def _rendered(body: TokenizeBody, messages: list[ChatMessage], model: ServedModel) -> str:
    check_conversation(body, messages)
    tools = read_tools(body.tools)
    return model.renderer.render(to_conversation(body, messages, tools, model, body.chat_template_kwargs))
