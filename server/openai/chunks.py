"""The envelope of an answer, and of each of its chunks: the same for chat completions and completions."""

from dataclasses import dataclass
from typing import Any

from server.openai.schema import StreamOptions
from server.openai.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What is the same in all pieces of one answer."""

    id: str
    created: int
    model: str
    """Name of the model, as the request spelled it."""

    def to_wire(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class Chunks:
    """Puts choices into chunks. With `include_usage` one more chunk at the end has the usage; all others have none."""

    def __init__(self, head: dict[str, Any], options: StreamOptions | None, **first: Any) -> None:
        """`first` is told in the first chunk only."""
        self._head = head
        self._include_usage = options is not None and bool(options.include_usage)
        self._nothing_yet = {"usage": None} if self._include_usage else {}
        self._first = first

    def of(self, choice: dict[str, Any]) -> dict[str, Any]:
        first, self._first = self._first, {}
        return {**self._head, "choices": [choice], **self._nothing_yet, **first}

    def last(self, usage: Usage) -> list[dict[str, Any]]:
        return [{**self._head, "choices": [], "usage": usage.to_wire()}] if self._include_usage else []
