"""Parses a model's text into content and tool calls, piece by piece; how the text is cut makes no difference."""

import re
import uuid
from collections.abc import Callable

from engines.text.tool_formats import ToolFormat
from server.model.call_object import NAME, SPACE, Arguments, CallObject, Reading
from server.model.deltas import Delta, ToolCallDelta, joined
from server.model.markers import beginning_of

NAMED_CALL = re.compile(rf"({NAME.pattern})\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\]\s*)?(?=\{{)")
MAX_NAMED_CALL = 256
"""Most characters of what looks like a tool's name. Longer text without arguments is content."""
LAYOUT = SPACE + ",;}"
"""Characters allowed between two calls, or between a call and the marker after it."""


class CallParser:
    """Finds the calls in an answer.

    What only looks like a call becomes content, nothing is lost, and nothing raises. Once the arguments of a call have
    begun the call is sent; where they turn out not to be JSON, the client gets them as the model wrote them.
    """

    def __init__(self, form: ToolFormat, names: frozenset[str], *, parallel: bool = True) -> None:
        """`names`: the tools of the request; `parallel`: whether more than one call is wanted."""
        self.calls = 0
        self.done = False
        """Whether the answer is complete, as it has the only call that is wanted. Any further text is dropped."""
        self._form = form
        self._names = names
        self._parallel = parallel
        self._state: Callable[[bool], bool] = self._start_of_answer if form.bare else self._text
        self._pending = ""  # text not parsed yet
        self._raw = ""  # parsed as the beginning of a call; becomes content if it is none
        self._call: CallObject | Arguments = CallObject()
        self._announced = False
        self._in_list = False
        self._after_call = False  # no text since the last call
        self._deltas: list[Delta] = []

    def push(self, text: str) -> list[Delta]:
        self._pending += text
        return self._run(last=False)

    def finish(self) -> list[Delta]:
        """Return what was held back, at the end of the text."""
        return self._run(last=True)

    def _run(self, *, last: bool) -> list[Delta]:
        while not self.done and self._state(last):
            pass
        deltas, self._deltas = self._deltas, []
        return joined(deltas)

    # Each state takes what it can parse from `_pending`, and returns False where it needs more text.

    def _start_of_answer(self, last: bool) -> bool:
        """At the start of an answer, the one place where a call may come without its marker."""
        text = self._pending.lstrip(SPACE)
        if not text and not last:
            return False
        if not text.startswith("{"):
            self._state = self._text
            return True
        self._raw, self._pending = self._pending[: -len(text)], text
        return self._begin(CallObject(self._names))

    def _text(self, last: bool) -> bool:
        marker = self._form.start
        if self._after_call:
            self._pending = self._pending.lstrip(SPACE)
        position = self._pending.find(marker)
        if position < 0:
            if last and self._after_call and marker.startswith(self._pending):
                self._pending = ""  # the output was cut off within the start of one more call: that is no content
            self._content(self._cut(marker, last))
            return False
        head = self._pending[:position].rstrip(SPACE)
        self._content(head)
        end = position + len(marker)
        self._raw, self._pending = self._pending[len(head) : end], self._pending[end:]
        self._state = self._after_marker
        return True

    def _after_marker(self, last: bool) -> bool:
        text = self._pending.lstrip(SPACE)
        self._raw += self._pending[: len(self._pending) - len(text)]
        self._pending = text
        if text.startswith("[") and not self._in_list:
            self._in_list = True
            self._raw, self._pending = self._raw + "[", text[1:]
            return True
        if text.startswith("{"):
            return self._begin(CallObject())
        if last and self._after_call and not text and not self._in_list:
            return False  # nothing but the start of one more call
        if self._form.named and not self._in_list and (NAME.match(text) or not text):
            return self._named_call(last)
        return self._give_back() if text or last else False

    def _named_call(self, last: bool) -> bool:
        head = self._pending[:MAX_NAMED_CALL]
        if "{" not in head and len(head) < MAX_NAMED_CALL and not last:
            return False
        match = NAMED_CALL.match(head)
        if match is None:
            return self._give_back()
        self._raw, self._pending = self._raw + match[0], self._pending[match.end() :]
        return self._begin(Arguments(match[1]))

    def _in_call(self, last: bool) -> bool:
        used = self._call.push(self._pending)
        self._pending = self._pending[used:]
        self._announce()
        if self._call.reading is Reading.DONE:
            return self._end_call()
        if self._call.reading is Reading.GOING and not last:
            return False
        if not self._announced:
            self._raw += self._call.raw
            return self._give_back()
        self._state = self._broken_arguments
        return True

    def _broken_arguments(self, last: bool) -> bool:
        """The rest of arguments that are not valid JSON. It is sent unchanged, as their beginning has been sent."""
        marker = self._form.end or self._form.start
        position = self._pending.find(marker)
        if position < 0:
            self._arguments(self._cut(marker, last))
            return False
        self._arguments(self._pending[:position])
        self._pending = self._pending[position:]
        return self._end_call()

    def _after_object(self, last: bool) -> bool:
        layout = LAYOUT + "]" if self._in_list else LAYOUT
        text = self._pending.lstrip(layout)
        skipped, end = self._pending[: len(self._pending) - len(text)], self._form.end
        if text.startswith("{"):
            self._raw, self._pending = skipped, text
            return self._begin(CallObject(None if self._in_list else self._names))
        if end and text.startswith(end):
            self._pending = text.removeprefix(end)
        elif (end or "").startswith(text):
            if not last:
                return False
            self._pending = ""  # the output was cut off within the call's end: that is no content
        else:
            self._pending = text if self._in_list else skipped.strip(SPACE) + text
        self._in_list = False
        self._state = self._text
        return True

    def _begin(self, call: CallObject | Arguments) -> bool:
        self._call, self._announced, self._state = call, False, self._in_call
        return True

    def _announce(self) -> None:
        """Send the part of the current call that is certain."""
        if self._call.name is None:
            return
        if not self._announced:
            self._announced = True
            self.calls += 1
            self._send(ToolCallDelta(self.calls - 1, f"call_{uuid.uuid4().hex[:24]}", self._call.name))
        self._arguments(self._call.take())

    def _end_call(self) -> bool:
        self._after_call = True
        self.done = not self._parallel
        self._state = self._after_object
        return True

    def _give_back(self) -> bool:
        """Turn what was read of a call into content, as it is no call, and go on with the text."""
        self._content(self._raw)
        self._in_list = False
        self._state = self._text
        return True

    def _cut(self, marker: str, last: bool) -> str:
        """Take from `_pending` what cannot belong to a marker that may follow, white space in front of it included."""
        kept = "" if last else beginning_of(marker, self._pending, SPACE)
        text, self._pending = self._pending[: len(self._pending) - len(kept)], kept
        return text

    def _content(self, text: str) -> None:
        if text:
            self._after_call = False
            self._deltas.append(Delta(content=text))

    def _arguments(self, text: str) -> None:
        if text:
            self._send(ToolCallDelta(self.calls - 1, arguments=text))

    def _send(self, delta: ToolCallDelta) -> None:
        self._deltas.append(Delta(tool_call=delta))
