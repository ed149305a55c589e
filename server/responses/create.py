"""One request for a response, read: it is answered while its client waits, or begun in the background."""

from contextlib import ExitStack
from dataclasses import dataclass

from fastapi import Request, Response

from server.http.keys.caller import Caller
from server.http.settings import HttpSettings
from server.inference.inference import Inference
from server.kept.responses import KeptRequest
from server.model.served import ServedModel
from server.openai.answer import Answer
from server.openai.pipeline import Endpoint, begin, send
from server.openai.schema import ChatRequest
from server.responses.background import Background, Run
from server.responses.context import Context
from server.responses.resources import to_resources
from server.responses.responses import Responses
from server.responses.schema import ResponsesRequest
from server.responses.supported import without_effect
from server.responses.words import renamed


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    request: Request
    body: ResponsesRequest
    context: Context
    chat: ChatRequest
    owner: str | None
    responses: Responses
    model: ServedModel
    inference: Inference

    async def answer(self, http: HttpSettings) -> Response:
        """In events or as a whole, and kept then."""
        request, responses = self.request, self.responses
        endpoint = responses.keeping(self.body, self.context, self.model, self.owner)
        answer = await self._begin(endpoint, request.state.answered)
        return await send(answer, request, http, stream=self.body.stream)

    async def begin_in(self, background: Background) -> Run:
        """The response, kept and begun. What is refused has been refused by then."""
        background.check_room()
        run = Run(self.owner, self.body.conversation_id, self._kept())
        store = self.responses.keeps(self.body)
        endpoint = self.responses.endpoint(self.body, self.model, store=store, on_end=run.end_with, made=run.use)
        with ExitStack() as held:
            answer = await self._begin(endpoint, held)
            run.input = to_resources(self.context.own, run.id)
            await background.start(run, answer, held)
        return run

    def _kept(self) -> KeptRequest:
        body = self.body.model_dump(mode="json", exclude={"input"}, exclude_unset=True)
        caller: Caller = self.request.state.caller
        return KeptRequest(body=body, by_admin=caller.is_admin, begun=1)

    async def _begin(self, endpoint: Endpoint[ChatRequest], held: ExitStack) -> Answer:
        answer = await begin(endpoint, self.request, self.chat, self.model, self.inference, held)
        self.request.state.ignored.add(*map(renamed, self.chat.ignored), *without_effect(self.body))
        return answer
