"""POST /v1/chat/completions: messages in, one answer or several out, whole or in chunks."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from engines.errors import InvalidRequest
from engines.logs import current_http_request_id
from engines.text.output_text import TextDelta, TextOptions
from engines.text.prompt import Prompt
from engines.text.vocabulary import Vocabulary
from engines.types import FinishReason, GenerationRequest
from server.http.body import json_body
from server.http.settings import HttpDep
from server.inference.inference import Inference, ReadyInference, lease
from server.model.deltas import Delta
from server.model.output import OutputParser, OutputPlan
from server.model.served import ModelDep, ServedModel
from server.model.tools import NO_TOOLS, read_tools
from server.openai.conversation import to_conversation
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
    read_constraint,
    respond,
    run,
    to_chunks,
    to_prompt_logprobs,
)
from server.openai.message import Message, delta_to_wire
from server.openai.schema import ChatRequest

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(
    request: Request,
    body: Annotated[ChatRequest, json_body(ChatRequest)],
    model: ModelDep,
    inference: ReadyInference,
    http: HttpDep,
) -> Response:
    check_request(body)
    leased = await lease(request, inference, body.model)
    return await respond(request, await prepare(body, model, inference, leased.version), body, http)


async def prepare(body: ChatRequest, model: ServedModel, inference: Inference, adapter: str | None) -> "ChatAnswer":
    """Everything that can be refused of a checked request is refused here, but for what the engine itself refuses."""
    limits = Limits(capabilities=inference.engine.capabilities(), max_logprobs=model.max_logprobs)
    prompt, plan = await _prompt_and_plan(body, model, limits)
    sampling = to_sampling(
        body,
        model.defaults,
        limits,
        prompt_length=len(prompt.ids),
        logprobs=chat_logprobs(body, limits),
        structured=plan.structured,
        bad_words_ids=bad_words_ids(body.bad_words, model.tokenizer),
    )
    envelope = Envelope(id=f"chatcmpl-{uuid.uuid4().hex}", created=int(time.time()), model=body.model)
    request = GenerationRequest(
        request_id=envelope.id,
        prompt_ids=prompt.ids,
        sampling=sampling,
        n=body.n,
        adapter=adapter,
        priority=body.priority,
        http_request_id=current_http_request_id(),
    )
    check_capabilities(request, limits.capabilities, body)
    options = to_text_options(
        body,
        model.defaults,
        starts_text=not body.continue_final_message,
        kept_special_ids=plan.marker_ids,
    )
    return ChatAnswer(model, inference, body, envelope, request, options, plan)


async def _prompt_and_plan(body: ChatRequest, model: ServedModel, limits: Limits) -> tuple[Prompt, OutputPlan]:
    """The prompt, and how its answer is constrained and read. What may take long is done in threads."""
    tools = NO_TOOLS
    if body.tools is not None or body.tool_choice is not None:
        tools = await asyncio.to_thread(read_tools, body.tools, body.tool_choice, body.parallel_tool_calls)
    kwargs = template_kwargs(body, model.renderer.template)
    conversation = to_conversation(body, body.messages, tools, model, kwargs)
    prompt = await model.renderer.chat(conversation, limits.capabilities)
    structured = await read_constraint(body)
    if structured is None and tools.mode == "none":
        return prompt, model.output_format.plan(tools, None, prompt.text)
    return prompt, await asyncio.to_thread(model.output_format.plan, tools, structured, prompt.text)


class ChatAnswer:
    """One answer, as a whole or in chunks."""

    def __init__(
        self,
        model: ServedModel,
        inference: Inference,
        body: ChatRequest,
        envelope: Envelope,
        request: GenerationRequest,
        options: TextOptions,
        plan: OutputPlan,
    ) -> None:
        self._model = model
        self._inference = inference
        self._body = body
        self._envelope = envelope
        self._request = request
        self._options = options
        self._plan = plan
        self._echoed = _echoed(body)
        self._usage = Usage(len(request.prompt_ids))
        if plan.reasoning is not None:
            self._usage.reasoning_tokens = 0

    def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        head = self._envelope.to_wire("chat.completion.chunk")
        return to_chunks(self._pieces(), head, self._usage, self._body.stream_options, **self._prompt_token_ids())

    async def _pieces(self) -> AsyncGenerator[dict[str, Any], None]:
        choices = self._choices()
        async with aclosing(self._steps(choices)) as steps:
            async for delta, parsed in steps:
                for piece in choices[delta.index].pieces(delta, parsed):
                    yield piece

    def _prompt_token_ids(self) -> dict[str, Any]:
        return {"prompt_token_ids": self._request.prompt_ids} if self._body.return_token_ids else {}

    async def completion(self) -> dict[str, Any]:
        choices = self._choices()
        extra = self._prompt_token_ids()
        async with aclosing(self._steps(choices)) as steps:
            async for delta, parsed in steps:
                choices[delta.index].add(delta, parsed)
                if delta.prompt_logprobs is not None:
                    extra["prompt_logprobs"] = to_prompt_logprobs(
                        delta.prompt_logprobs, self._request.sampling.prompt_logprobs or 0, self._model.vocabulary
                    )
        return {
            **self._envelope.to_wire("chat.completion"),
            "choices": [choice.to_wire() for choice in choices],
            "usage": self._usage.to_wire(),
            **extra,
        }

    async def _steps(self, choices: list["Choice"]) -> AsyncGenerator[tuple[TextDelta, list[Delta]], None]:
        """What the engine gives, with what it means. An output whose last call is complete is ended."""
        async with aclosing(run(self._inference, self._request, self._model.vocabulary, self._options)) as deltas:
            async for delta in deltas:
                choice = choices[delta.index]
                if choice.finished:
                    continue  # steps that were under way when the output was ended
                yield delta, choice.read(delta)
                if choice.finished and delta.finish_reason is None:
                    self._inference.engine.finish(self._request.request_id, delta.index)

    def _choices(self) -> list["Choice"]:
        return [
            Choice(index, self._body, self._echoed, self._plan.parser(), self._usage, self._model.vocabulary)
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
    """One of the answer's choices while it grows: `read` each delta, then `add` it to the whole or cut it in `pieces`."""

    def __init__(
        self, index: int, body: ChatRequest, echoed: str, parser: OutputParser, usage: Usage, vocabulary: Vocabulary
    ) -> None:
        self.finished = False
        self._index = index
        self._logprobs = bool(body.logprobs)
        self._return_token_ids = body.return_token_ids
        self._echoed = echoed
        self._parser = parser
        self._usage = usage
        self._vocabulary = vocabulary
        self._begun = False
        self._message = Message(echoed)
        self._entries: list[dict[str, Any]] = []
        self._token_ids: list[int] = []
        self._finish: dict[str, Any] = {}

    def read(self, delta: TextDelta) -> list[Delta]:
        """What the delta means: content, reasoning, calls."""
        parsed = self._parser.push(delta.text) if delta.text else []
        self.finished = delta.finish_reason is not None or self._parser.done
        if self.finished:
            parsed += self._parser.finish()
            self._finish = self._finish_of(delta)
        self._usage.add(delta)
        if any(part.reasoning_content is not None for part in parsed):
            self._usage.add_reasoning(delta)
        return parsed

    def _finish_of(self, delta: TextDelta) -> dict[str, Any]:
        reason = FINISH_REASONS[delta.finish_reason or FinishReason.STOP]
        if self._parser.called and reason == "stop":
            reason = "tool_calls"
        return {"finish_reason": reason} | ({} if delta.stop_reason is None else {"stop_reason": delta.stop_reason})

    def _wire_entries(self, delta: TextDelta) -> list[dict[str, Any]]:
        return [chat_entry(entry, self._vocabulary) for entry in delta.entries]

    # --- as a whole

    def add(self, delta: TextDelta, parsed: list[Delta]) -> None:
        for part in parsed:
            self._message.add(part)
        self._entries += self._wire_entries(delta)
        self._token_ids += delta.token_ids

    def to_wire(self) -> dict[str, Any]:
        choice = {
            "index": self._index,
            "message": self._message.to_wire(),
            "logprobs": {"content": self._entries, "refusal": None} if self._logprobs else None,
            **self._finish,
        }
        if self._return_token_ids:
            choice["token_ids"] = self._token_ids
        return choice

    # --- in pieces

    def pieces(self, delta: TextDelta, parsed: list[Delta]) -> list[dict[str, Any]]:
        """The delta as choices of chunks: none where it has nothing to say yet, several where it says several things."""
        pieces = [] if self._begun else [self._piece({"role": "assistant", "content": self._echoed})]
        self._begun = True
        told = len(pieces)
        pieces += [self._piece(delta_to_wire(part)) for part in parsed]
        entries = self._wire_entries(delta)
        if len(pieces) == told and (entries or self._return_token_ids):
            pieces.append(self._piece({}))
        if entries:
            pieces[told]["logprobs"] = {"content": entries, "refusal": None}
        if self._return_token_ids:
            pieces[told]["token_ids"] = delta.token_ids
        if self.finished:
            pieces.append({**self._piece({}), **self._finish})
        return pieces

    def _piece(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "finish_reason": None}
