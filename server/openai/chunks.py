"""The envelope of an answer, and of each of its chunks: the same for chat completions and completions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from server.openai.answer import AnswerDelta
from server.openai.asked import Asked
from server.openai.schema import StreamOptions
from server.openai.usage import Usage

MARK = "\0text"
"""Stands for a text where it will be: no id and no name of a model has a NUL in it."""
QUOTED = orjson.dumps(MARK)


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
    """Puts choices into chunks. With `include_usage` one more chunk at the end has the usage of all, and the others
    have none; with `continuous_usage_stats` each has that of its choice so far."""

    def __init__(self, head: dict[str, Any], options: StreamOptions | None, asked: Asked, **first: Any) -> None:
        """`first` is told in the first chunk only."""
        self._head = head
        self._asked = asked
        self._include_usage = options is not None and bool(options.include_usage)
        self._continuous = options is not None and bool(options.continuous_usage_stats)
        self._usages: dict[int, Usage] = {}  # of each choice
        self._no_usage: dict[str, Any] = {"usage": None} if self._include_usage else {}
        self._first = first
        self._around: dict[int, tuple[bytes, bytes]] = {}  # text of each choice

    def of(self, pieces: Iterable[dict[str, Any]], delta: AnswerDelta) -> list[dict[str, Any]]:
        """The chunks of one delta, which is in pieces."""
        usage = self._usage_after(delta) if self._continuous else self._no_usage
        chunks = [{**self._head, "choices": [piece], **usage} for piece in pieces]
        if self._first and chunks:
            chunks[0].update(self._first)
            self._first = {}
        return chunks

    @property
    def alike(self) -> bool:
        """Whether chunks that only bring more text differ in nothing else."""
        return not self._continuous and not self._first

    def of_text(self, index: int, text: str, piece: Callable[[str], dict[str, Any]]) -> orjson.Fragment:
        """The chunk of a choice with more text, while chunks are `alike`: all but the text is made once.

        `piece`: the choice with a text, the same for every call.
        """
        if index not in self._around:
            chunk = {**self._head, "choices": [piece(MARK)], **self._no_usage}
            before, _, after = orjson.dumps(chunk).partition(QUOTED)
            self._around[index] = before, after
        before, after = self._around[index]
        return orjson.Fragment(before + orjson.dumps(text) + after)

    def last(self, usage: Usage) -> list[dict[str, Any]]:
        return [{**self._head, "choices": [], "usage": usage.to_wire()}] if self._include_usage else []

    def _usage_after(self, delta: AnswerDelta) -> dict[str, Any]:
        index = delta.text.index
        if index not in self._usages:
            prompt = self._asked.prompts[index // self._asked.n]
            reasons, predicted = self._asked.plan.reasoning is not None, self._asked.prediction_ids is not None
            self._usages[index] = Usage(len(prompt.ids), reasons=reasons, predicted=predicted)
        self._usages[index].add(delta.text, reasoned=delta.reasoned)
        return {"usage": self._usages[index].to_wire()}
