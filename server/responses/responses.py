"""How a request for a response is answered: as a chat, by the same pipeline, in words of its own; and then kept."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import Depends

from engines.capabilities import Capabilities
from engines.errors import InvalidRequest, StorageFull, StoreUnavailable, UnsupportedParameter
from engines.text.vocabulary import Vocabulary
from server.deps import part
from server.kept.responses import KeptResponse, KeptResponses
from server.model.served import ServedModel
from server.openai.asked import Asked
from server.openai.chat import check_chat, read_chat
from server.openai.chunks import Envelope
from server.openai.pipeline import Endpoint
from server.openai.schema import ChatRequest
from server.pools import Pools
from server.responses.context import Context, Contexts
from server.responses.ids import RESPONSE
from server.responses.renderer import ResponseRenderer
from server.responses.resources import to_resources
from server.responses.response import ResponseHead, joins_conversation
from server.responses.schema import PromptFields, ResponsesRequest
from server.responses.seal import Seal
from server.responses.supported import check_supported
from server.responses.to_chat import to_chat
from server.responses.truncation import truncated
from server.store.access import Access


@dataclass(frozen=True, slots=True)
class Responses:
    seal: Seal
    contexts: Contexts
    kept: KeptResponses

    async def context(self, body: PromptFields, access: Access) -> Context:
        """What the model is to read. Raises InvalidRequest, NotFound."""
        check_supported(body)
        return await self.contexts.find(body, access)

    def chat(self, body: PromptFields, context: Context) -> ChatRequest:
        """What the model is asked. Raises InvalidRequest."""
        return to_chat(body, context, self.seal.open)

    def keeps(self, body: ResponsesRequest) -> bool:
        """Whether the response is to be kept.

        Raises UnsupportedParameter, StorageFull, StoreUnavailable where that is asked for and cannot be: by `store`, by
        `background`, or by a conversation that it would be missing from.
        """
        name = "background" if body.background else "store"
        if not self.kept.keeps:
            if getattr(body, name):
                raise UnsupportedParameter(f"{name!r} needs a server that keeps something.", param=name)
            return False
        if body.background and body.store is False:
            raise InvalidRequest("'background' needs 'store': the response is looked at later.", param="background")
        if body.store is False:
            return False
        try:
            self.kept.shelf.check_room()
        except (StorageFull, StoreUnavailable):
            if body.store or body.background or body.conversation_id is not None:
                raise
            return False
        return True

    def keep_later(self, body: ResponsesRequest, context: Context, owner: str | None, answer: dict[str, Any]) -> None:
        """Keep a response that has ended, for a client of this name."""
        items = to_resources(context.own, answer["id"])
        conversation = body.conversation_id if joins_conversation(answer) else None
        self.kept.keep_later(KeptResponse(owner=owner, answer=answer, input=items), conversation)

    def keeping(
        self, body: ResponsesRequest, context: Context, model: ServedModel, owner: str | None
    ) -> Endpoint[ChatRequest]:
        """What answers the chat that was made of `body`, and has the response kept, for a client of this name."""
        store = self.keeps(body)
        keep = partial(self.keep_later, body, context, owner)
        return self.endpoint(body, model, store=store, on_end=keep if store else lambda _: None)

    def endpoint(
        self,
        body: ResponsesRequest,
        model: ServedModel,
        *,
        store: bool,
        on_end: Callable[[dict[str, Any]], None],
        made: Callable[[ResponseRenderer], None] = lambda _: None,
    ) -> Endpoint[ChatRequest]:
        """What answers the chat that was made of `body`. `made` gets the renderer before anything is rendered, and
        `on_end` the response once it has ended, before its client hears of that."""

        def renderer(_: ChatRequest, __: Asked, envelope: Envelope, vocabulary: Vocabulary) -> ResponseRenderer:
            head = ResponseHead(
                id=envelope.id,
                created=envelope.created,
                model=envelope.model,
                body=body,
                defaults=model.defaults,
                store=store,
            )
            renderer = ResponseRenderer(head, vocabulary, self.seal, on_end=on_end)
            made(renderer)
            return renderer

        return _endpoint(body, renderer)

    def renderer_again(
        self,
        body: ResponsesRequest,
        model: ServedModel,
        response: KeptResponse,
        *,
        on_end: Callable[[dict[str, Any]], None],
        first_event: int,
    ) -> ResponseRenderer:
        """What renders a response that an earlier server has begun."""
        head = ResponseHead(
            id=response.id,
            created=response.answer["created_at"],
            model=body.model,
            body=body,
            defaults=model.defaults,
            store=True,
        )
        return ResponseRenderer(head, model.vocabulary, self.seal, on_end=on_end, first_event=first_event)

    def endpoint_again(self, body: ResponsesRequest, renderer: ResponseRenderer) -> Endpoint[ChatRequest]:
        """What answers its chat."""
        return _endpoint(body, lambda *_: renderer)


ResponsesDep = Annotated[Responses, Depends(part(Responses))]


def _endpoint(
    body: ResponsesRequest, renderer: Callable[[ChatRequest, Asked, Envelope, Vocabulary], ResponseRenderer]
) -> Endpoint[ChatRequest]:
    read = partial(_read, body.truncation == "auto")
    return Endpoint(id_prefix=RESPONSE, check=check_chat, read=read, renderer=renderer)


async def _read(
    truncates: bool, chat: ChatRequest, model: ServedModel, capabilities: Capabilities, pools: Pools
) -> Asked:
    if truncates:
        chat = await pools.text.run_long(chat.is_long, truncated, chat, model, capabilities)
    return await read_chat(chat, model, capabilities, pools)
