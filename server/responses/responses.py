"""How a request for a response is answered: as a chat, by the same pipeline, in words of its own."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import Depends

from engines.capabilities import Capabilities
from engines.text.vocabulary import Vocabulary
from server.deps import part
from server.model.defaults import SamplingDefaults
from server.model.served import ServedModel
from server.openai.asked import Asked
from server.openai.chat import check_chat, read_chat
from server.openai.chunks import Envelope
from server.openai.pipeline import Endpoint
from server.openai.schema import ChatRequest
from server.pools import Pools
from server.responses.renderer import ResponseRenderer
from server.responses.response import ResponseHead
from server.responses.schema import ResponsesRequest
from server.responses.seal import Seal
from server.responses.supported import check_supported
from server.responses.to_chat import input_items, to_chat
from server.responses.truncation import truncated


@dataclass(frozen=True, slots=True)
class Responses:
    seal: Seal

    def chat(self, body: ResponsesRequest) -> ChatRequest:
        """What the model is asked. Raises InvalidRequest."""
        check_supported(body)
        return to_chat(body, input_items(body), self.seal.open)

    def endpoint(self, body: ResponsesRequest, model: ServedModel) -> Endpoint[ChatRequest]:
        """What answers the chat that was made of `body`."""
        return Endpoint(
            id_prefix="resp_",
            check=check_chat,
            read=partial(_read, body.truncation == "auto"),
            renderer=partial(_renderer, body, model.defaults, self.seal),
        )


ResponsesDep = Annotated[Responses, Depends(part(Responses))]


async def _read(
    truncates: bool, chat: ChatRequest, model: ServedModel, capabilities: Capabilities, pools: Pools
) -> Asked:
    if truncates:
        chat = await pools.text.run_long(chat.is_long, truncated, chat, model, capabilities)
    return await read_chat(chat, model, capabilities, pools)


def _renderer(
    body: ResponsesRequest,
    defaults: SamplingDefaults,
    seal: Seal,
    chat: ChatRequest,
    asked: Asked,
    envelope: Envelope,
    vocabulary: Vocabulary,
) -> ResponseRenderer:
    head = ResponseHead(
        id=envelope.id, created=envelope.created, model=envelope.model, body=body, defaults=defaults, store=False
    )
    return ResponseRenderer(head, vocabulary, seal)
