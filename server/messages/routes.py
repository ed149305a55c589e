"""Anthropic's Messages: an answer whole or in events, and the tokens of a prompt."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request, Response

from engines.capabilities import Capabilities
from server.http.body import json_body
from server.http.description import ANY_ANTHROPIC_ERROR, STREAMED
from server.http.keys.deps import AccessDep
from server.http.settings import HttpDep
from server.inference.inference import ReadyInference
from server.messages.convert import to_chat
from server.messages.renderer import MessageRenderer
from server.messages.schema import CountRequest, MessageRequest
from server.messages.words import in_own_words, renamed
from server.model.served import ModelDep, ServedModel
from server.openai.asked import Asked
from server.openai.chat import check_chat, read_chat
from server.openai.pipeline import Endpoint, begin, send
from server.openai.schema import ChatRequest
from server.openai.tokenization import count_prompt
from server.pools import Pools

router = APIRouter(prefix="/v1/messages", responses=ANY_ANTHROPIC_ERROR)

BETAS = "anthropic-beta"
"""The header that asks for features of Anthropic's by their names. What there is of them here needs no asking."""


@router.post("", response_model=None, responses=STREAMED)
async def create_message(
    request: Request,
    body: Annotated[MessageRequest, json_body(MessageRequest)],
    model: ModelDep,
    inference: ReadyInference,
    http: HttpDep,
) -> Response:
    with in_own_words():
        chat = await inference.pools.text.run_long(body.is_long, to_chat, body)
        answer = await begin(_endpoint(body), request, chat, model, inference, request.state.answered)
        request.state.ignored.add(*_without_effect(body, chat, request))
        return await send(answer, request, http, stream=body.stream)


@router.post("/count_tokens")
async def count_tokens(
    request: Request,
    body: Annotated[CountRequest, json_body(CountRequest)],
    model: ModelDep,
    inference: ReadyInference,
    access: AccessDep,
) -> dict[str, int]:
    """The tokens of the prompt that the same request has as a message, whether or not they fit the model's context."""
    with in_own_words():
        pools, capabilities = inference.pools, inference.engine.capabilities()
        chat = await pools.text.run_long(body.is_long, to_chat, body)
        model = model.as_asked(await inference.lease(body.model, access, request.state.answered))
        count = await pools.text.run_long(body.is_long, count_prompt, chat, model, capabilities)
        request.state.ignored.add(*_without_effect(body, chat, request))
        return {"input_tokens": count}


def _endpoint(body: MessageRequest) -> Endpoint[ChatRequest]:
    read, renderer = partial(_read, body), partial(MessageRenderer, body)
    return Endpoint(id_prefix="msg_", check=check_chat, read=read, renderer=renderer)


async def _read(
    wanted: MessageRequest, body: ChatRequest, model: ServedModel, capabilities: Capabilities, pools: Pools
) -> Asked:
    """What is asked, as chat completions read it; an answer that does not fit the context ends where that does."""
    asked = await read_chat(body, model, capabilities, pools)
    room = capabilities.max_model_len - len(asked.prompts[0].ids)
    return replace(asked, max_tokens=min(wanted.max_tokens, room))


def _without_effect(body: CountRequest, chat: ChatRequest, request: Request) -> Iterable[str]:
    """Names for the client, of what was found while the request was read."""
    off = body.thinking is not None and body.thinking.is_off  # a model that thinks all the same does so unseen
    names = [renamed(name) for name in chat.ignored if not (off and name == "reasoning_effort")]
    return [*names, BETAS] if BETAS in request.headers else names
