"""An answer as chat completions have it: messages, or the chunks of messages."""

from typing import Any

import orjson
from msgspec.structs import replace

from engines.text.logprob_entries import that_spell
from engines.text.vocabulary import Vocabulary
from server.http.sse import CHUNKS
from server.openai.answer import AnswerDelta
from server.openai.asked import Asked
from server.openai.chunks import Chunks, Envelope
from server.openai.functions import with_function_call
from server.openai.logprobs import chat_entry, to_prompt_logprobs
from server.openai.message import Message, delta_to_wire
from server.openai.schema import ChatRequest
from server.openai.usage import Usage


class ChatRenderer:
    events = CHUNKS

    def __init__(self, body: ChatRequest, asked: Asked, envelope: Envelope, vocabulary: Vocabulary) -> None:
        self._body = body
        self._vocabulary = vocabulary
        self._envelope = envelope
        self._extra: dict[str, Any] = {"prompt_token_ids": asked.prompts[0].ids} if body.return_token_ids else {}
        self._tier = {} if body.service_tier is None else {"service_tier": "default"}
        head = envelope.to_wire("chat.completion.chunk") | self._tier
        self._chunks = Chunks(head, body.stream_options, asked, **self._extra)
        reasons = asked.plan.reasoning is not None
        self._choices = [ChatChoice(index, body, vocabulary, reasons) for index in range(body.n)]

    def chunks(self, delta: AnswerDelta) -> list[Any]:
        choice = self._choices[delta.text.index]
        text = choice.only_text(delta) if self._chunks.alike else None
        if text is not None:
            return [self._chunks.of_text(delta.text.index, text, choice.text_piece)]
        return self._chunks.of(choice.pieces(delta), delta)

    def last_chunks(self, usage: Usage) -> list[dict[str, Any]]:
        return self._chunks.last(usage)

    def add(self, delta: AnswerDelta) -> None:
        self._choices[delta.text.index].add(delta)
        if delta.text.prompt_logprobs is not None:
            self._extra["prompt_logprobs"] = to_prompt_logprobs(
                delta.text.prompt_logprobs, self._body.prompt_logprobs or 0, self._vocabulary
            )

    def whole(self, usage: Usage) -> dict[str, Any]:
        return {
            **self._envelope.to_wire("chat.completion"),
            **self._tier,
            "choices": [choice.to_wire() for choice in self._choices],
            "usage": usage.to_wire(),
            **self._extra,
        }


class ChatChoice:
    """One of the answer's choices while it grows."""

    def __init__(self, index: int, body: ChatRequest, vocabulary: Vocabulary, reasons: bool) -> None:
        self._index = index
        self._logprobs = bool(body.logprobs)
        self._return_token_ids = body.return_token_ids
        self._tokens_as_ids = body.return_tokens_as_token_ids
        self._calls_function = bool(body.functions)
        self._echoed = echoed(body)
        self._vocabulary = vocabulary
        self._begun = False
        self._shows_reasoning = body.include_reasoning or not reasons
        self._plain = not (self._logprobs or self._return_token_ids or self._calls_function)
        self._message = Message(self._echoed)
        self._entries: list[orjson.Fragment] = []
        self._token_ids: list[int] = []
        self._finish: dict[str, Any] = {}

    def _wire_entries(self, delta: AnswerDelta) -> list[orjson.Fragment]:
        return [chat_entry(entry, self._vocabulary, as_ids=self._tokens_as_ids) for entry in delta.text.entries]

    def _shown(self, delta: AnswerDelta) -> AnswerDelta:
        """The delta without the reasoning, and the tokens of it, where the client wants none."""
        parts = [part for part in delta.parts if part.reasoning_content is None]
        if not parts:
            return delta._replace(parts=[], text=replace(delta.text, entries=(), token_ids=()))
        self._shows_reasoning = True  # it has ended: all that comes is the answer
        if len(parts) == len(delta.parts):
            return delta
        content = "".join(part.content or "" for part in parts)
        entries, ids = delta.text.entries, delta.text.token_ids
        first = that_spell(content, [entry.shown for entry in entries]).start
        first_id = that_spell(content, [self._vocabulary.token_bytes(id) for id in ids]).start
        return delta._replace(parts=parts, text=replace(delta.text, entries=entries[first:], token_ids=ids[first_id:]))

    # --- as a whole

    def add(self, delta: AnswerDelta) -> None:
        if not self._shows_reasoning:
            delta = self._shown(delta)
        for part in delta.parts:
            self._message.add(part)
        self._entries += self._wire_entries(delta)
        self._token_ids += delta.text.token_ids
        self._finish = self._finish_to_wire(delta)

    def _finish_to_wire(self, delta: AnswerDelta) -> dict[str, Any]:
        finish = delta.finish_to_wire()
        called = self._calls_function and delta.finish == "tool_calls"
        return finish | {"finish_reason": "function_call"} if called else finish

    def to_wire(self) -> dict[str, Any]:
        message = self._message.to_wire()
        choice = {
            "index": self._index,
            "message": with_function_call(message) if self._calls_function else message,
            "logprobs": {"content": self._entries, "refusal": None} if self._logprobs else None,
            **self._finish,
        }
        if self._return_token_ids:
            choice["token_ids"] = self._token_ids
        return choice

    # --- in pieces

    def only_text(self, delta: AnswerDelta) -> str | None:
        """The text of a delta that brings nothing but more text, as nearly all do; None for any other."""
        if not (self._plain and self._begun and self._shows_reasoning) or delta.finish is not None:
            return None
        return delta.parts[0].content if len(delta.parts) == 1 else None

    def text_piece(self, text: str) -> dict[str, Any]:
        return self._piece({"content": text})

    def pieces(self, delta: AnswerDelta) -> list[dict[str, Any]]:
        """The delta as choices of chunks: none where it has nothing to say yet, several where it says several
        things."""
        if not self._shows_reasoning:
            delta = self._shown(delta)
        pieces = [] if self._begun else [self._piece({"role": "assistant", "content": self._echoed})]
        self._begun = True
        told = len(pieces)
        pieces += [self._piece(delta_to_wire(part)) for part in delta.parts]
        entries = self._wire_entries(delta) if delta.text.entries else []
        if len(pieces) == told and (entries or self._return_token_ids):
            pieces.append(self._piece({}))
        if entries:
            pieces[told]["logprobs"] = {"content": entries, "refusal": None}
        if self._return_token_ids:
            pieces[told]["token_ids"] = delta.text.token_ids
        if delta.finish is not None:
            pieces.append({**self._piece({}), **self._finish_to_wire(delta)})
        return pieces

    def _piece(self, delta: dict[str, Any]) -> dict[str, Any]:
        if self._calls_function:
            delta = with_function_call(delta)
        return {"index": self._index, "delta": delta, "finish_reason": None}


def echoed(body: ChatRequest) -> str:
    """With `echo` the answer begins with the final message, which it continues."""
    content = body.messages[-1].content
    return content if body.echo and isinstance(content, str) else ""
