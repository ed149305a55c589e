"""The items of a response's output while they grow, each with the events that tell of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol

import orjson

from engines.answers.deltas import Delta, ToolCallDelta
from server.responses.seal import Seal

Event = dict[str, Any]
"""An event without its number."""
Status = Literal["in_progress", "completed", "incomplete"]


class OutputItem(Protocol):
    """`begin`, then what its kind takes, then `end`: each gives the events of it."""

    def begin(self) -> Iterator[Event]: ...

    def end(self, status: Status) -> Iterator[Event]: ...

    def to_wire(self) -> dict[str, Any]:
        """The item as it is now."""
        ...


class _Item(ABC):
    def __init__(self, id: str, index: int) -> None:
        self.id = id
        self.status: Status = "in_progress"
        self._index = index
        self._at = {"item_id": self.id, "output_index": index}

    def _added(self) -> Event:
        return {"type": "response.output_item.added", "output_index": self._index, "item": self.to_wire()}

    def _done(self, status: Status) -> Event:
        self.status = status
        return {"type": "response.output_item.done", "output_index": self._index, "item": self.to_wire()}

    @abstractmethod
    def to_wire(self) -> dict[str, Any]: ...


class MessageItem(_Item):
    """What the assistant says: one part of text."""

    def __init__(self, token: str, index: int) -> None:
        super().__init__(f"msg_{token}_{index}", index)
        self._part_at = {**self._at, "content_index": 0}
        self._begun = False
        self._texts: list[str] = []
        self._logprobs: list[orjson.Fragment] = []

    def begin(self) -> Iterator[Event]:
        yield self._added()
        self._begun = True
        yield {"type": "response.content_part.added", **self._part_at, "part": self._part()}

    def push(self, text: str, logprobs: list[orjson.Fragment]) -> Event:
        self._texts.append(text)
        self._logprobs += logprobs
        return {"type": "response.output_text.delta", **self._part_at, "delta": text, "logprobs": logprobs}

    def end(self, status: Status) -> Iterator[Event]:
        part = self._part()
        told = {"text": part["text"], "logprobs": part["logprobs"]}
        yield {"type": "response.output_text.done", **self._part_at, **told}
        yield {"type": "response.content_part.done", **self._part_at, "part": part}
        yield self._done(status)

    def to_wire(self) -> dict[str, Any]:
        content = [self._part()] if self._begun else []
        return {"id": self.id, "type": "message", "status": self.status, "role": "assistant", "content": content}

    def _part(self) -> dict[str, Any]:
        text = "".join(self._texts)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._logprobs)}


class ReasoningItem(_Item):
    """What the model thinks: one part of text, which is told as the summary as well where one is asked for."""

    def __init__(self, token: str, index: int, *, summarized: bool, seal: Seal | None) -> None:
        """`seal`: where the text is to be sealed too."""
        super().__init__(f"rs_{token}_{index}", index)
        self._summarized = summarized
        self._seal = seal
        self._begun = False
        self._texts: list[str] = []

    def begin(self) -> Iterator[Event]:
        yield self._added()
        self._begun = True
        yield {"type": "response.content_part.added", **self._at, "content_index": 0, "part": self._part()}
        if self._summarized:
            yield {
                "type": "response.reasoning_summary_part.added",
                **self._at,
                "summary_index": 0,
                "part": _summary(""),
            }

    def push(self, text: str) -> Iterator[Event]:
        self._texts.append(text)
        yield {"type": "response.reasoning_text.delta", **self._at, "content_index": 0, "delta": text}
        if self._summarized:
            yield {"type": "response.reasoning_summary_text.delta", **self._at, "summary_index": 0, "delta": text}

    def end(self, status: Status) -> Iterator[Event]:
        part = self._part()
        text = part["text"]
        yield {"type": "response.reasoning_text.done", **self._at, "content_index": 0, "text": text}
        yield {"type": "response.content_part.done", **self._at, "content_index": 0, "part": part}
        if self._summarized:
            at = {**self._at, "summary_index": 0}
            yield {"type": "response.reasoning_summary_text.done", **at, "text": text}
            yield {"type": "response.reasoning_summary_part.done", **at, "part": _summary(text)}
        yield self._done(status)

    def to_wire(self) -> dict[str, Any]:
        part = self._part()
        item = {
            "id": self.id,
            "type": "reasoning",
            "status": self.status,
            "summary": [_summary(part["text"])] if self._summarized and self._begun else [],
            "content": [part] if self._begun else [],
        }
        if self._seal is not None and self.status != "in_progress":
            item["encrypted_content"] = self._seal.close(part["text"])
        return item

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": "".join(self._texts)}


def _summary(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


class CallItem(_Item):
    """A call of one of the client's functions."""

    def __init__(self, token: str, index: int, call: ToolCallDelta) -> None:
        super().__init__(f"fc_{token}_{index}", index)
        self._call_id = call.id
        self._name = call.name
        self._arguments: list[str] = []

    def begin(self) -> Iterator[Event]:
        yield self._added()

    def push(self, arguments: str) -> Event:
        self._arguments.append(arguments)
        return {"type": "response.function_call_arguments.delta", **self._at, "delta": arguments}

    def end(self, status: Status) -> Iterator[Event]:
        arguments = "".join(self._arguments)
        told = {"name": self._name, "arguments": arguments}
        yield {"type": "response.function_call_arguments.done", **self._at, **told}
        yield self._done("completed" if _is_whole(arguments) else status)

    def to_wire(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": self.status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
        }


def _is_whole(arguments: str) -> bool:
    """Whether nothing can follow: an answer may be cut short behind a call that it has made."""
    try:
        return isinstance(orjson.loads(arguments), dict)
    except orjson.JSONDecodeError:
        return False


class Output:
    """All items, made of the deltas of one answer. One grows at a time."""

    def __init__(self, token: str, *, summarized: bool, seal: Seal | None) -> None:
        """`token` becomes part of the items' ids: of the response that they are of."""
        self._token = token
        self._summarized = summarized
        self._seal = seal
        self._items: list[OutputItem] = []
        self._open: OutputItem | None = None

    def push(self, delta: Delta, logprobs: list[orjson.Fragment]) -> Iterator[Event]:
        """`logprobs`: of the tokens that the content is made of."""
        if delta.content is not None:
            yield from self._to_message()
            assert isinstance(self._open, MessageItem)
            yield self._open.push(delta.content, logprobs)
        elif delta.tool_call is not None:
            yield from self._call(delta.tool_call)
        elif delta.reasoning_content is not None:
            if not isinstance(self._open, ReasoningItem):
                item = ReasoningItem(self._token, len(self._items), summarized=self._summarized, seal=self._seal)
                yield from self._begin(item)
            assert isinstance(self._open, ReasoningItem)
            yield from self._open.push(delta.reasoning_content)

    def end(self, *, cut_short: bool) -> Iterator[Event]:
        """An answer that says nothing is a message without text."""
        if not cut_short and all(isinstance(item, ReasoningItem) for item in self._items):
            yield from self._to_message()
        yield from self._end("incomplete" if cut_short else "completed")

    def to_wire(self) -> list[dict[str, Any]]:
        return [item.to_wire() for item in self._items]

    def _to_message(self) -> Iterable[Event]:
        return () if isinstance(self._open, MessageItem) else self._begin(MessageItem(self._token, len(self._items)))

    def _call(self, call: ToolCallDelta) -> Iterator[Event]:
        if call.id is not None:
            yield from self._begin(CallItem(self._token, len(self._items), call))
        assert isinstance(self._open, CallItem)
        if call.arguments:
            yield self._open.push(call.arguments)

    def _begin(self, item: OutputItem) -> Iterator[Event]:
        yield from self._end("completed")
        self._items.append(item)
        self._open = item
        yield from item.begin()

    def _end(self, status: Status) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.end(status)
            self._open = None
