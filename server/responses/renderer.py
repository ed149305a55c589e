"""An answer as responses have it: items of output, or the events that tell how they grow."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from engines.answers.deltas import Delta
from engines.text.logprob_entries import TokenEntry, that_spell
from engines.text.vocabulary import Vocabulary
from server.http.errors import error_body, error_status
from server.http.sse import EventStyle
from server.openai.answer import AnswerDelta
from server.openai.logprobs import chat_entry
from server.openai.usage import Usage
from server.responses.output import Event, Output
from server.responses.response import ResponseHead, usage_to_wire
from server.responses.seal import Seal
from server.responses.words import ENCRYPTED


class ResponseRenderer:
    def __init__(
        self,
        head: ResponseHead,
        vocabulary: Vocabulary,
        seal: Seal,
        on_end: Callable[[dict[str, Any]], None],
        *,
        first_event: int = 0,
    ) -> None:
        """`on_end` is called with the response once it has ended, before its client hears of that. `first_event` is the
        number of its first event."""
        self.events = EventStyle(named=True, errors=self._failed, end=b"")
        self._head = head
        self._on_end = on_end
        self._vocabulary = vocabulary
        self._output = Output(
            head.token, summarized=head.body.summary is not None, seal=seal if ENCRYPTED in head.body.include else None
        )
        self._entries: list[TokenEntry] = []  # of tokens of which no part has come yet
        self._cut_short = False
        self._begun = False
        self._next = first_event
        self._queued = False

    # --- as a whole

    def add(self, delta: AnswerDelta) -> None:
        for _ in self._grow(delta):
            pass

    def whole(self, usage: Usage) -> dict[str, Any]:
        for _ in self._output.end(cut_short=self._cut_short):
            pass
        return self._ended(usage)

    # --- in events

    def chunks(self, delta: AnswerDelta) -> Iterator[Event]:
        return self._numbered((*self._begin(), *self._grow(delta)))

    def last_chunks(self, usage: Usage) -> Iterator[Event]:
        yield from self._numbered(self._output.end(cut_short=self._cut_short))
        ended = self._ended(usage)
        yield from self._numbered([{"type": f"response.{ended['status']}", "response": ended}])

    def _failed(self, error: Exception, request_id: str) -> list[Event]:
        told = error_body(error, request_id)["error"]
        event = {"type": "error", "code": told["code"], "message": told["message"], "param": told["param"]}
        failed = {"code": _failure(error), "message": told["message"]}
        begin = self._begin()
        for _ in self._output.end(cut_short=True):
            pass
        response = self._head.to_wire("failed", self._output.to_wire(), error=failed)
        self._on_end(response)
        return list(self._numbered([*begin, event, {"type": "response.failed", "response": response}]))

    def _begin(self) -> list[Event]:
        if self._begun:
            return []
        self._begun = True
        response = self._head.to_wire("in_progress", [])
        names = ("in_progress",) if self._queued else ("created", "in_progress")
        return [{"type": f"response.{name}", "response": response} for name in names]

    def _numbered(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            yield {**event, "sequence_number": self._next}
            self._next += 1

    # --- in the background

    def queued(self) -> list[Event]:
        """The first events of a response that waits. None has come before."""
        self._queued = True
        response = self.now()
        names = ("created", "queued")
        return list(self._numbered({"type": f"response.{name}", "response": response} for name in names))

    def not_begun(self) -> dict[str, Any]:
        """The response before all that came of it."""
        return self._head.to_wire("queued", [])

    def now(self) -> dict[str, Any]:
        """The response while it has not ended."""
        return self._head.to_wire("in_progress" if self._begun else "queued", self._output.to_wire())

    def cancelled(self) -> dict[str, Any]:
        """The response as it is where nothing is added any more."""
        for _ in self._output.end(cut_short=True):
            pass
        return self._head.to_wire("cancelled", self._output.to_wire())

    # --- both

    def _grow(self, delta: AnswerDelta) -> Iterator[Event]:
        self._entries += delta.text.entries
        self._cut_short = delta.finish == "length"
        for part in delta.parts:
            yield from self._output.push(part, self._logprobs(part))
        if delta.parts and all(part.content is None for part in delta.parts):
            self._entries = []

    def _logprobs(self, part: Delta) -> list[orjson.Fragment]:
        """Those of content: reasoning, calls and what marks them have none."""
        if part.content is None:
            return []
        spelling = that_spell(part.content, [entry.shown for entry in self._entries])
        entries, self._entries = self._entries[spelling], self._entries[spelling.stop :]
        return [chat_entry(entry, self._vocabulary) for entry in entries]

    def _ended(self, usage: Usage) -> dict[str, Any]:
        status = "incomplete" if self._cut_short else "completed"
        reason = {"reason": "max_output_tokens"} if self._cut_short else None
        output, used = self._output.to_wire(), usage_to_wire(usage)
        response = self._head.to_wire(status, output, usage=used, incomplete_details=reason)
        self._on_end(response)
        return response


def _failure(error: Exception) -> str:
    """One of the codes that OpenAI has for a response that failed."""
    status = error_status(error)
    return "server_error" if status >= 500 else "rate_limit_exceeded" if status == 429 else "invalid_prompt"
