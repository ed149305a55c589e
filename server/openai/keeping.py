"""Chat completions that ask to be kept: what was asked, and the whole answer once it is complete, streamed or not."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from engines.logs import current_http_request_id
from engines.text.vocabulary import Vocabulary
from server.http.keys.caller import Caller
from server.kept.completions import KeptCompletion, KeptCompletions
from server.openai.answer import AnswerDelta, Renderer
from server.openai.asked import Asked
from server.openai.chunks import Envelope
from server.openai.pipeline import Endpoint
from server.openai.schema import ChatRequest
from server.openai.usage import Usage

SHOWN = {
    "tools",
    "tool_choice",
    "functions",
    "parallel_tool_calls",
    "response_format",
    "seed",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "continue_final_message",
    "echo",
}
"""Fields of a request that stand beside a kept answer."""


def keeping(
    endpoint: Endpoint[ChatRequest], body: ChatRequest, kept: KeptCompletions, caller: Caller
) -> Endpoint[ChatRequest]:
    """The endpoint that answers this request and keeps the answer, where it asks for that and this server does.

    An answer that breaks off, or is broken off, is not kept.
    """
    if not body.store:
        return endpoint
    if not kept.keeps:
        body.ignored.add("store")
        return endpoint

    def renderer(body: ChatRequest, asked: Asked, envelope: Envelope, vocabulary: Vocabulary) -> Renderer:
        def inner() -> Renderer:
            return endpoint.renderer(body, asked, envelope, vocabulary)

        return KeepingRenderer(inner(), inner(), body, kept, caller.name)

    return replace(endpoint, renderer=renderer)


class KeepingRenderer:
    """Renders as another does, and gives the whole answer away as it ends."""

    def __init__(
        self, told: Renderer, gathered: Renderer, body: ChatRequest, kept: KeptCompletions, owner: str | None
    ) -> None:
        """`told` renders the chunks of a stream, `gathered` the answer as a whole: no renderer does both."""
        self.events = told.events
        self._told = told
        self._gathered = gathered
        self._body = body
        self._kept = kept
        self._owner = owner
        self._request_id = current_http_request_id()

    def add(self, delta: AnswerDelta) -> None:
        self._gathered.add(delta)

    def whole(self, usage: Usage) -> dict[str, Any]:
        answer = self._gathered.whole(usage)
        self._kept.keep_later(answer["id"], lambda: self._completion(answer))
        return answer

    def chunks(self, delta: AnswerDelta) -> Iterable[Any]:
        self._gathered.add(delta)
        return self._told.chunks(delta)

    def last_chunks(self, usage: Usage) -> Iterable[Any]:
        self.whole(usage)
        return self._told.last_chunks(usage)

    def _completion(self, answer: dict[str, Any]) -> KeptCompletion:
        body = self._body
        asked = {
            "messages": [message.model_dump(exclude_none=True) for message in body.messages],
            "request_id": self._request_id,
            "input_user": body.user,
            **body.model_dump(include=SHOWN),
        }
        return KeptCompletion(owner=self._owner, metadata=body.metadata or {}, asked=asked, answer=answer)
