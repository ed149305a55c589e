"""/tokenize and /detokenize, as vLLM has them."""

from typing import Annotated

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from engines.capabilities import Capabilities
from engines.errors import InvalidRequest
from server.http.body import Items, RequestBody, json_body
from server.http.field_limits import Name
from server.http.keys.deps import AccessDep
from server.http.validation import MISSING
from server.inference.inference import ReadyInference
from server.model.served import ModelDep, ServedModel
from server.model.tools import read_tools
from server.openai.chat import chat_conversation
from server.openai.conversation import check_conversation, to_conversation
from server.openai.schema import ChatMessage, ChatRequest, ConversationFields, Messages

router = APIRouter()

MAX_COUNTED = 1 << 19
"""Characters of a text. A tokenizer takes more than a hundred bytes for each."""
MAX_SPELT = 1 << 17
"""Tokens that are made a text. A tokenizer does so in one piece."""
PIECE = 4096
"""Tokens that are written as text at a time."""


class TokenizeBody(ConversationFields):
    """A text, or the messages of a chat as its prompt would hold them."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["prompt"]}, {"required": ["messages"]}]})

    model: Name | None = None
    prompt: Annotated[str, Field(max_length=MAX_COUNTED)] | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    """Unless given, they are added to a text; a chat template writes its own."""
    return_token_strs: bool = False


class DetokenizeBody(RequestBody):
    model: Name | None = None
    tokens: Annotated[Items[Annotated[int, Field(ge=0)]], Field(max_length=MAX_SPELT)]


@router.post("/tokenize", response_model=None)
async def tokenize(
    request: Request,
    body: Annotated[TokenizeBody, json_body(TokenizeBody)],
    model: ModelDep,
    inference: ReadyInference,
    access: AccessDep,
) -> Response:
    if body.model is not None:
        model = model.as_asked(await inference.lease(body.model, access, request.state.answered))
    capabilities = inference.engine.capabilities()
    answer = await inference.pools.text.run_long(body.is_long, _answer, body, model, capabilities.max_model_len)
    return Response(answer, media_type="application/json")


@router.post("/detokenize", response_model=None)
async def detokenize(
    request: Request,
    body: Annotated[DetokenizeBody, json_body(DetokenizeBody)],
    model: ModelDep,
    inference: ReadyInference,
    access: AccessDep,
) -> Response:
    if body.model is not None:  # adapters have the base model's tokens: it is enough that the model is there
        await inference.lease(body.model, access, request.state.answered)
    limit = inference.engine.capabilities().vocab_size
    if (highest := max(body.tokens, default=0)) >= limit:
        raise InvalidRequest(f"Token id {highest} is not in the vocabulary of {limit} tokens.", param="tokens")
    text = await inference.pools.text.run_long(body.is_long, model.tokenizer.decode, body.tokens)
    return Response(orjson.dumps({"prompt": text}), media_type="application/json")


def count_prompt(chat: ChatRequest, model: ServedModel, capabilities: Capabilities) -> int:
    """The tokens of the prompt that a chat makes; they may be more than the context, where the text is short enough to
    count them all. Raises InvalidRequest. What is long takes its time: call it in a thread."""
    _, conversation = chat_conversation(chat, model)
    text = model.renderer.render(conversation)
    if len(text) <= MAX_COUNTED:
        return len(model.renderer.encode(text, add_special_tokens=False))
    return len(model.renderer.text(text, capabilities, add_special_tokens=False, param="messages").ids)


def _answer(body: TokenizeBody, model: ServedModel, max_model_len: int) -> bytes:
    ids = _encode(body, model)
    answer = {"count": len(ids), "max_model_len": max_model_len, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = _token_strs(ids, model)
    return orjson.dumps(answer)


def _token_strs(ids: list[int], model: ServedModel) -> orjson.Fragment:
    """A list of strings as JSON, written in pieces: all of them at a time would take many times its memory."""
    pieces = (ids[start : start + PIECE] for start in range(0, len(ids), PIECE))
    written = [orjson.dumps(model.tokenizer.convert_ids_to_tokens(piece))[1:-1] for piece in pieces]
    return orjson.Fragment(b"[" + b",".join(written) + b"]")


def _encode(body: TokenizeBody, model: ServedModel) -> list[int]:
    text, adds = _text(body, model)
    if len(text) > MAX_COUNTED:
        message = f"The messages make {len(text)} characters; at most {MAX_COUNTED} are counted."
        raise InvalidRequest(message, param="messages")
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
