"""Answers in OpenAI's harmony format: messages in channels, each with a header.

`<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...`: what is in the channel
"analysis" is reasoning, a message to a function is a call, and anything else is content.
https://github.com/openai/harmony
"""

import re
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from engines.answers.call_object import NAME
from engines.answers.deltas import Delta, ToolCallDelta
from engines.answers.markers import beginning_of_any, first_of, leading, may_lead
from engines.answers.states import StateParser

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
HEADERS = (START, CHANNEL, " to=", "to=")
"""What a header begins with. The prompt has begun the first one."""
MARKERS = (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS)
MAX_HEADER = 256
FUNCTIONS = "functions."
WORDS = ("assistant", "analysis", "commentary", "final", "json", "to=")

Kind = Literal["content", "reasoning", "call"]


class ChannelParser(StateParser):
    def __init__(self, schemas: Mapping[str, Any] | None, *, reasons: bool = True, parallel: bool = True) -> None:
        """`schemas`: the tools of the request, None where it has none; `reasons`: whether reasoning is told apart;
        `parallel`: whether more than one call is wanted."""
        super().__init__()
        self._schemas = schemas
        self._reasons = reasons
        self._parallel = parallel
        self._calls = 0
        self._kind: Kind = "content"
        self._gap: dict[Kind, str] = {}  # what parts this message from the one before it of its kind
        self._empty = True  # nothing of this message has come

    @property
    def called(self) -> bool:
        return self._calls > 0

    def _first_state(self, last: bool) -> bool:
        return self._between(last)

    def _between(self, last: bool) -> bool:
        """Before a message: its header, or text that goes on with what the prompt has begun."""
        text = self._pending
        if not text or (may_lead(HEADERS, text) and not last):
            return False
        self._kind = "content"
        self._state = self._in_header if leading(HEADERS, text) else self._in_message
        return True

    def _in_header(self, last: bool) -> bool:
        position, marker = first_of((MESSAGE, *ENDS), self._pending[:MAX_HEADER])
        if position < 0 and len(self._pending) < MAX_HEADER and not last:
            return False
        header = self._pending[: max(position, 0)]
        if marker == MESSAGE:
            self._pending = self._pending[position + len(MESSAGE) :]
            self._open(header)
        elif not marker and last and _is_cut_off(self._pending):
            self._pending = ""
            return False
        self._state = self._in_message
        return True

    def _in_message(self, last: bool) -> bool:
        position, marker = first_of(MARKERS, self._pending)
        if position < 0:
            kept = "" if last else beginning_of_any(MARKERS, self._pending, "")
            self._send(self._pending[: len(self._pending) - len(kept)])
            self._pending = kept
            return False
        self._send(self._pending[:position])
        if marker in (MESSAGE, CONSTRAIN) or (marker in (START, CHANNEL) and not position and self._state_is_fresh):
            self._pending = self._pending[position + len(marker) :]
            return True
        self._pending = self._pending[position:].removeprefix(marker if marker in ENDS else "")
        self._close()
        return True

    @property
    def _state_is_fresh(self) -> bool:
        return self._kind == "content" and self._empty

    def _open(self, header: str) -> None:
        """Settle what a message is by its header."""
        channel = re.search(r"<\|channel\|>\s*(\w+)", header)
        recipient = re.search(r"\bto=([^\s<]+)", header)
        name = self._called_name(recipient[1]) if recipient else None
        self._empty = True
        if name is not None:
            self._kind = "call"
            self._calls += 1
            call = ToolCallDelta(self._calls - 1, f"call_{uuid.uuid4().hex[:24]}", name)
            self._deltas.append(Delta(tool_call=call))
        elif channel and channel[1] == "analysis" and self._reasons:
            self._kind = "reasoning"
        else:
            self._kind = "content"

    def _called_name(self, recipient: str) -> str | None:
        name = recipient.removeprefix(FUNCTIONS)
        if self._schemas is None or not NAME.fullmatch(name):
            return None
        return name if recipient.startswith(FUNCTIONS) or name in self._schemas else None

    def _close(self) -> None:
        if self._kind == "call":
            if self._empty:
                self._send("{}")
            self.done = not self._parallel
        elif not self._empty:
            self._gap[self._kind] = "\n"
        self._kind, self._empty, self._state = "content", True, self._between

    def _send(self, text: str) -> None:
        if not text:
            return
        text = self._gap.pop(self._kind, "") + text
        self._empty = False
        if self._kind == "call":
            self._deltas.append(Delta(tool_call=ToolCallDelta(self._calls - 1, arguments=text)))
        elif self._kind == "reasoning":
            self._deltas.append(Delta(reasoning_content=text))
        else:
            self._deltas.append(Delta(content=text))


def _is_cut_off(text: str) -> bool:
    """Whether the output ended within a header, so that there is nothing but words of headers."""
    for marker in MARKERS:
        text = text.replace(marker, " ")
    *words, last = text.split() or [""]
    return all(word in WORDS or word.startswith("to=") for word in words) and (
        last.startswith(("to=", "<")) or may_lead(WORDS, last)
    )
