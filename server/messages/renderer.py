"""An answer as Anthropic's Messages have it: a message of blocks, or the events of one that grows."""

from typing import Any, Literal

from pydantic_core import from_json

from engines.answers.deltas import Delta, ToolCallDelta
from engines.text.vocabulary import Vocabulary
from server.http.error_shapes import ANTHROPIC
from server.http.errors import error_body
from server.http.sse import EventStyle
from server.messages.schema import MessageRequest
from server.messages.signatures import SHOWN, hide
from server.openai.answer import AnswerDelta, Finish
from server.openai.asked import Asked
from server.openai.chunks import Envelope
from server.openai.schema import ChatRequest
from server.openai.usage import Usage

Event = dict[str, Any]


def _error_events(error: Exception, request_id: str) -> list[Event]:
    return [error_body(error, request_id, ANTHROPIC)]


EVENTS = EventStyle(named=True, errors=_error_events, end=b"", keep_alive=b'event: ping\ndata: {"type":"ping"}\n\n')


# --- blocks while they grow


class TextBlock:
    def __init__(self) -> None:
        self._texts: list[str] = []

    def begin(self) -> Event:
        return {"type": "text", "text": ""}

    def add(self, text: str) -> list[Event]:
        self._texts.append(text)
        return [{"type": "text_delta", "text": text}]

    def end(self) -> list[Event]:
        return []

    def whole(self) -> Event:
        return {"type": "text", "text": "".join(self._texts)}


class ThinkingBlock:
    """Thinking that is not shown is in the signature, with which it comes back."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._texts: list[str] = []

    def begin(self) -> Event:
        return {"type": "thinking", "thinking": "", "signature": ""}

    def add(self, text: str) -> list[Event]:
        self._texts.append(text)
        return [{"type": "thinking_delta", "thinking": text}] if self._shown else []

    def end(self) -> list[Event]:
        return [{"type": "signature_delta", "signature": self._signature()}]

    def whole(self) -> Event:
        thinking = "".join(self._texts) if self._shown else ""
        return {"type": "thinking", "thinking": thinking, "signature": self._signature()}

    def _signature(self) -> str:
        return SHOWN if self._shown else hide("".join(self._texts))


class ToolUseBlock:
    def __init__(self, call: ToolCallDelta) -> None:
        self._call = call
        self._texts: list[str] = []

    def begin(self) -> Event:
        return {"type": "tool_use", "id": self._call.id, "name": self._call.name, "input": {}}

    def add(self, text: str) -> list[Event]:
        self._texts.append(text)
        return [{"type": "input_json_delta", "partial_json": text}] if text else []

    def end(self) -> list[Event]:
        return []

    def whole(self) -> Event:
        return self.begin() | {"input": _to_input("".join(self._texts))}


def _to_input(arguments: str) -> dict[str, Any]:
    """The object that a model has written, as far as it came: Anthropic's clients read streams so, too."""
    try:
        value = from_json(arguments or "{}", allow_partial=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


Block = TextBlock | ThinkingBlock | ToolUseBlock


# --- the message


class MessageRenderer:
    events = EVENTS

    def __init__(
        self, wanted: MessageRequest, body: ChatRequest, asked: Asked, envelope: Envelope, vocabulary: Vocabulary
    ) -> None:
        self._wanted = wanted
        self._thinking = _shows_thinking(wanted)
        self._stop = frozenset(body.stop or ())
        cut_short = asked.max_tokens is not None and asked.max_tokens < wanted.max_tokens
        length = "model_context_window_exceeded" if cut_short else "max_tokens"
        self._reasons: dict[Finish, str] = {"stop": "end_turn", "tool_calls": "tool_use", "length": length}
        self._prompt_tokens = len(asked.prompts[0].ids)
        self._envelope = envelope
        self._begun = False
        self._blocks: list[Block] = []
        self._kind: tuple[str, int] | None = None  # of the block that grows
        self._end: dict[str, Any] = {}

    # --- as a whole

    def add(self, delta: AnswerDelta) -> None:
        self._grow(delta)

    def whole(self, usage: Usage) -> Event:
        content = [block.whole() for block in self._blocks]
        return {**self._head(), "content": content, **self._end, "usage": _usage(usage)}

    # --- as events

    def chunks(self, delta: AnswerDelta) -> list[Event]:
        events = [] if self._begun else [self._start(delta)]
        self._begun = True
        return events + self._grow(delta)

    def last_chunks(self, usage: Usage) -> list[Event]:
        return [{"type": "message_delta", "delta": self._end, "usage": _usage(usage)}, {"type": "message_stop"}]

    def _start(self, delta: AnswerDelta) -> Event:
        usage = Usage(self._prompt_tokens)
        usage.cached_tokens = delta.text.cached_tokens
        message = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(usage)}
        return {"type": "message_start", "message": message}

    def _head(self) -> Event:
        return {"id": self._envelope.id, "type": "message", "role": "assistant", "model": self._envelope.model}

    # --- both

    def _grow(self, delta: AnswerDelta) -> list[Event]:
        events = [event for part in delta.parts for event in self._add(part)]
        if delta.finish is not None:
            events += self._close()
            self._end = self._stop_of(delta)
        return events

    def _add(self, part: Delta) -> list[Event]:
        kind, text = _read(part)
        if kind[0] == "thinking" and self._thinking == "hidden":
            return []
        opened = [] if kind == self._kind else self._close() + self._open(kind, part)
        index = len(self._blocks) - 1
        deltas = self._blocks[-1].add(text)
        return opened + [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]

    def _open(self, kind: tuple[str, int], part: Delta) -> list[Event]:
        self._kind = kind
        self._blocks.append(self._block(part))
        begin = self._blocks[-1].begin()
        return [{"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": begin}]

    def _block(self, part: Delta) -> Block:
        if part.tool_call is not None:
            return ToolUseBlock(part.tool_call)
        return TextBlock() if part.content is not None else ThinkingBlock(shown=self._thinking == "shown")

    def _close(self) -> list[Event]:
        """End the block that grows, if any."""
        if self._kind is None:
            return []
        self._kind, index = None, len(self._blocks) - 1
        last = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in self._blocks[-1].end()]
        return [*last, {"type": "content_block_stop", "index": index}]

    def _stop_of(self, delta: AnswerDelta) -> Event:
        found = delta.text.stop_reason
        sequence = found if delta.finish == "stop" and isinstance(found, str) and found in self._stop else None
        reason = "stop_sequence" if sequence is not None else self._reasons[delta.finish or "stop"]
        return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": None}


def _shows_thinking(wanted: MessageRequest) -> Literal["shown", "omitted", "hidden"]:
    thinking = wanted.thinking
    if thinking is None:
        return "shown"
    if thinking.is_off:
        return "hidden"
    return "omitted" if thinking.display == "omitted" else "shown"


def _read(part: Delta) -> tuple[tuple[str, int], str]:
    """The kind of block that a part belongs to, calls apart from one another, and its text."""
    if part.tool_call is not None:
        return ("tool_use", part.tool_call.index), part.tool_call.arguments
    if part.content is not None:
        return ("text", 0), part.content
    return ("thinking", 0), part.reasoning_content or ""


def _usage(usage: Usage) -> Event:
    """Tokens of the prompt that came from the cache are counted apart from the others."""
    cached = usage.cached_tokens or 0
    wire: Event = {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    }
    if usage.reasoning_tokens is not None:
        wire["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return wire
