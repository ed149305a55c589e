"""POST /v1/chat/completions: messages in, one answer or several out, whole or in chunks."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from engines.errors import InvalidRequest, UnsupportedParameter
from engines.prompt import Conversation
from engines.text import TextDelta, TextOptions, Vocabulary
from engines.types import GenerationRequest
from server.body import json_body
from server.deps import ReadyServing, Serving
from server.openai.convert import (
    Limits,
    bad_words_ids,
    chat_logprobs,
    check_capabilities,
    check_request,
    template_kwargs,
    to_sampling,
    to_text_options,
)
from server.openai.generation import (
    FINISH_REASONS,
    Envelope,
    Usage,
    chat_entry,
    json_response,
    run,
    to_prompt_logprobs,
)
from server.openai.schema import ChatRequest
from server.sse import stream_events, until_disconnect

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(
    request: Request, body: Annotated[ChatRequest, json_body(ChatRequest)], serving: ReadyServing
) -> Response:
    answer = await prepare(body, serving)
    if body.stream:
        return await stream_events(request, answer.chunks(), keep_alive=serving.params.sse_keep_alive_interval)
    return json_response(await until_disconnect(request, answer.completion()))


async def prepare(body: ChatRequest, serving: Serving) -> "ChatAnswer":
    """Everything that can be refused is refused here, but for what the engine itself refuses."""
    check_request(body)
    for name in ("tools", "response_format", "structured_outputs"):  # the parsers come with the next commit
        if getattr(body, name) is not None:
            raise UnsupportedParameter(f"{name!r} cannot be honoured yet.", param=name)
    adapter = serving.resolve(body.model)
    limits = Limits(capabilities=serving.engine.capabilities(), max_logprobs=serving.params.max_logprobs)
    conversation = Conversation(
        messages=serving.renderer.messages([message.model_dump(exclude_unset=True) for message in body.messages]),
        add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
        continue_final_message=body.continue_final_message,
        template_kwargs=template_kwargs(body, serving.renderer.template),
    )
    prompt_ids = await serving.renderer.chat(conversation, limits.capabilities)
    sampling = to_sampling(
        body,
        serving.defaults,
        limits,
        prompt_length=len(prompt_ids),
        logprobs=chat_logprobs(body, serving.defaults, limits),
        bad_words_ids=bad_words_ids(body.bad_words, serving.tokenizer),
    )
    envelope = Envelope(id=f"chatcmpl-{uuid.uuid4().hex}", created=int(time.time()), model=body.model)
    request = GenerationRequest(
        request_id=envelope.id,
        prompt_ids=prompt_ids,
        sampling=sampling,
        n=body.n,
        adapter=adapter,
        priority=body.priority,
    )
    check_capabilities(request, limits.capabilities)
    options = to_text_options(body, serving.defaults, starts_text=not body.continue_final_message)
    return ChatAnswer(serving, body, envelope, request, options)


class ChatAnswer:
    """One answer, as a whole or in chunks."""

    def __init__(
        self,
        serving: Serving,
        body: ChatRequest,
        envelope: Envelope,
        request: GenerationRequest,
        options: TextOptions,
    ) -> None:
        self._serving = serving
        self._body = body
        self._envelope = envelope
        self._request = request
        self._options = options
        self._echoed = _echoed(body)
        self._usage = Usage(len(request.prompt_ids))

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        head = self._envelope.to_wire("chat.completion.chunk")
        include_usage = self._body.stream_options is not None and bool(self._body.stream_options.include_usage)
        nothing_yet = {"usage": None} if include_usage else {}
        choices = self._choices()
        begun = False
        async with aclosing(run(self._serving, self._request, self._options)) as deltas:
            async for delta in deltas:
                for piece in choices[delta.index].pieces(delta):
                    chunk = {**head, "choices": [piece], **nothing_yet}
                    if not begun and self._body.return_token_ids:
                        chunk["prompt_token_ids"] = self._request.prompt_ids
                    begun = True
                    yield chunk
        if include_usage:
            yield {**head, "choices": [], "usage": self._usage.to_wire()}

    async def completion(self) -> dict[str, Any]:
        choices = self._choices()
        extra: dict[str, Any] = {"prompt_token_ids": self._request.prompt_ids} if self._body.return_token_ids else {}
        async with aclosing(run(self._serving, self._request, self._options)) as deltas:
            async for delta in deltas:
                choices[delta.index].add(delta)
                if delta.prompt_logprobs is not None:
                    extra["prompt_logprobs"] = to_prompt_logprobs(
                        delta.prompt_logprobs, self._request.sampling.prompt_logprobs or 0, self._serving.vocabulary
                    )
        return {
            **self._envelope.to_wire("chat.completion"),
            "choices": [choice.to_wire() for choice in choices],
            "usage": self._usage.to_wire(),
            **extra,
        }

    def _choices(self) -> list["Choice"]:
        return [
            Choice(index, self._body, self._request, self._echoed, self._usage, self._serving.vocabulary)
            for index in range(self._request.n)
        ]


def _echoed(body: ChatRequest) -> str:
    """With `echo` the answer begins with the final message, which it continues."""
    if not body.echo:
        return ""
    final = body.messages[-1]
    if final.role != "assistant" or not isinstance(final.content, str):
        raise InvalidRequest("'echo' repeats a final message of role 'assistant'; there is none.", param="echo")
    return final.content


class Choice:
    """One of the answer's choices while it grows."""

    def __init__(
        self,
        index: int,
        body: ChatRequest,
        request: GenerationRequest,
        echoed: str,
        usage: Usage,
        vocabulary: Vocabulary,
    ) -> None:
        self._index = index
        self._logprobs = request.sampling.logprobs is not None
        self._return_token_ids = body.return_token_ids
        self._echoed = echoed
        self._usage = usage
        self._vocabulary = vocabulary
        self._begun = False
        # of the whole answer
        self._texts = [echoed] if echoed else []
        self._entries: list[dict[str, Any]] = []
        self._token_ids: list[int] = []
        self._finish: dict[str, Any] = {}

    # --- as a whole

    def add(self, delta: TextDelta) -> None:
        self._usage.add(delta)
        self._texts.append(delta.text)
        self._entries += self._wire_entries(delta)
        self._token_ids += delta.token_ids
        if delta.finish_reason is not None:
            self._finish = self._finish_of(delta)

    def to_wire(self) -> dict[str, Any]:
        choice = {
            "index": self._index,
            "message": {"role": "assistant", "content": "".join(self._texts), "refusal": None},
            "logprobs": {"content": self._entries, "refusal": None} if self._logprobs else None,
            **self._finish,
        }
        if self._return_token_ids:
            choice["token_ids"] = self._token_ids
        return choice

    # --- in pieces

    def pieces(self, delta: TextDelta) -> list[dict[str, Any]]:
        """The delta as choices of chunks: none where it has nothing to say yet, several where it says several things."""
        self._usage.add(delta)
        pieces = self._begin()
        told = len(pieces)
        if delta.text:
            pieces.append(self._piece({"content": delta.text}))
        entries = self._wire_entries(delta)
        if len(pieces) == told and (entries or self._return_token_ids):
            pieces.append(self._piece({}))
        if entries:
            pieces[told]["logprobs"] = {"content": entries, "refusal": None}
        if self._return_token_ids:
            pieces[told]["token_ids"] = delta.token_ids
        if delta.finish_reason is not None:
            pieces.append({**self._piece({}), **self._finish_of(delta)})
        return pieces

    def _begin(self) -> list[dict[str, Any]]:
        if self._begun:
            return []
        self._begun = True
        return [self._piece({"role": "assistant", "content": self._echoed})]

    def _piece(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "finish_reason": None}

    # --- of both

    def _wire_entries(self, delta: TextDelta) -> list[dict[str, Any]]:
        return [chat_entry(entry, self._vocabulary) for entry in delta.entries]

    def _finish_of(self, delta: TextDelta) -> dict[str, Any]:
        assert delta.finish_reason is not None
        finish: dict[str, Any] = {"finish_reason": FINISH_REASONS[delta.finish_reason]}
        if delta.stop_reason is not None:
            finish["stop_reason"] = delta.stop_reason
        return finish
