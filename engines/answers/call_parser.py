"""Parses a model's text into content and tool calls, piece by piece; how the text is cut makes no difference."""

import re
import uuid
from collections.abc import Mapping
from typing import Any

from engines.answers.call_object import SPACE, Arguments, CallObject, CallReader, Reading
from engines.answers.deltas import Delta, ToolCallDelta
from engines.answers.literal_call import LiteralCall
from engines.answers.markers import beginning_of_any, first_of, leading, may_lead
from engines.answers.states import StateParser
from engines.answers.tagged_call import TaggedCall
from engines.text.tool_syntax import Literals, Tags, ToolFormat

MAX_HEAD = 256
"""Most characters of what looks like a call's name. Longer text without arguments is content."""
LAYOUT = SPACE + ",;"
"""Characters allowed between two calls, or between a call and the marker after it."""


class CallParser(StateParser):
    """Finds the calls in an answer.

    What only looks like a call becomes content, nothing is lost, and nothing raises. Once the arguments of a call have
    begun the call is sent; where they turn out not to be JSON, the client gets them as the model wrote them.
    """

    def __init__(self, form: ToolFormat, schemas: Mapping[str, Mapping[str, Any]], *, parallel: bool = True) -> None:
        """`schemas`: the tools of the request by their names; `parallel`: whether more than one call is wanted."""
        super().__init__()
        self.calls = 0
        self._form = form
        self._schemas = schemas
        self._parallel = parallel
        self._head = re.compile(form.head.pattern) if form.head else None
        self._ends = (*form.ends, *form.starts)
        self._bare = tuple(f"{name}\n" for name in schemas) if form.bare_names else (form.bare,) if form.bare else ()
        self._raw = ""  # parsed as the beginning of a call; becomes content if it is none
        self._call: CallReader = CallObject()
        self._announced = False
        self._in_list = False
        self._known_only = False  # only a tool of the request counts as called
        self._after_call = False  # no text since the last call

    def _first_state(self, last: bool) -> bool:
        return self._without_marker(last) if self._bare else self._text(last)

    def _without_marker(self, last: bool) -> bool:
        """Where a call may come without its marker: at the start of an answer, and with `bare_names` behind a call."""
        text = self._pending.lstrip(SPACE)
        if not leading(self._bare, text):
            if not last and may_lead(self._bare, text):
                return False
            self._state = self._text
            return True
        self._raw, self._pending = self._pending[: -len(text)], text
        self._known_only = True
        self._state = self._after_marker
        return True

    def _text(self, last: bool) -> bool:
        if self._after_call:
            self._pending = self._pending.lstrip(SPACE)
        position, marker = first_of(self._form.starts, self._pending)
        if position < 0:
            if last and self._after_call and may_lead(self._form.starts, self._pending):
                self._pending = ""  # the output was cut off within the start of one more call: that is no content
            self._content(self._cut(self._form.starts, last))
            return False
        head = self._pending[:position].rstrip(SPACE)
        self._content(head)
        end = position + len(marker)
        self._raw, self._pending = self._pending[len(head) : end], self._pending[end:]
        self._known_only = False
        self._state = self._after_marker
        return True

    def _after_marker(self, last: bool) -> bool:
        """Further markers, the bracket that opens a list, or the call itself."""
        text = self._pending.lstrip(SPACE)
        self._raw += self._pending[: len(self._pending) - len(text)]
        self._pending = text
        if not text and not last:
            return False
        is_json = self._form.arguments is None
        if is_json and text.startswith("{"):
            return self._begin(CallObject(frozenset(self._schemas) if self._known_only else None))
        if text.startswith("[") and not self._in_list and not isinstance(self._form.arguments, Tags):
            self._in_list = True
            self._take("[")
            return True
        if marker := leading(self._form.starts, text):
            self._take(marker)
            return True
        if text and not last and may_lead(self._form.starts, text):
            return False
        if last and self._after_call and not text and not self._in_list:
            return False  # nothing but the start of one more call
        if self._head is not None and not (is_json and self._in_list):
            self._state = self._in_head
            return True
        return self._give_back()

    def _in_head(self, last: bool) -> bool:
        head, text = self._form.head, self._pending
        assert head is not None and self._head is not None
        position = text.find(head.until, 0, MAX_HEAD)
        if position < 0 and len(text) < MAX_HEAD and not last:
            return False
        match = self._head.match(text, 0, position + len(head.until)) if position >= 0 else None
        if match is None or (self._known_only and match["name"] not in self._schemas):
            return self._give_back()
        self._take(match[0])
        return self._begin(self._reader(match["name"]))

    def _reader(self, name: str) -> CallReader:
        """A reader of arguments."""
        syntax, schema = self._form.arguments, self._schemas.get(name, {})
        if isinstance(syntax, Tags):
            return TaggedCall(syntax, name, schema)
        if isinstance(syntax, Literals):
            return LiteralCall(syntax, name, schema)
        return Arguments(name)

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
        if self._call.reading is Reading.GOING:
            self._arguments(self._call.rest(self._pending))
            self._pending = ""
            return False
        if not self._call.verbatim:
            return self._end_call()
        self._state = self._broken_arguments
        return True

    def _broken_arguments(self, last: bool) -> bool:
        """The rest of arguments that are not valid JSON. It is sent unchanged, as their beginning has been sent."""
        position, _ = first_of(self._ends, self._pending)
        if position < 0:
            self._arguments(self._cut(self._ends, last))
            return False
        self._arguments(self._pending[:position])
        self._pending = self._pending[position:]
        return self._end_call()

    def _after_object(self, last: bool) -> bool:
        """Behind a call: its end, a further call, or text."""
        layout = LAYOUT + ("" if self._form.arguments else "}") + ("]" if self._in_list else "")
        text = self._pending.lstrip(layout)
        skipped = self._pending[: len(self._pending) - len(text)]
        if end := leading(self._form.ends, text):
            self._pending = text.removeprefix(end)
            if end != self._form.ends[-1]:
                return True
            self.done = self._form.results_follow
            return self._close_calls()
        if may_lead(self._form.ends, text) or not text:
            if not last:
                return False
            self._pending = ""  # the output was cut off within the call's end: that is no content
            return self._close_calls()
        if self._in_list and "]" in skipped:
            self._in_list, skipped = False, ""
        if self._is_further_call(text):
            self._raw, self._pending = skipped, text
            self._known_only = not self._in_list and self._form.arguments is None
            self._state = self._after_marker
            return True
        if self._form.head and self._form.head.prefix and self._form.head.prefix.startswith(text) and not last:
            return False
        self._pending = text if self._in_list else skipped.strip(SPACE) + text
        return self._close_calls()

    def _is_further_call(self, text: str) -> bool:
        """Whether a call begins here without a marker."""
        if self._form.arguments is None:
            return text.startswith("{")
        if isinstance(self._form.arguments, Literals):
            return self._in_section and (text[0].isalpha() or text[0] == "_")
        return bool(self._form.head and self._form.head.prefix and text.startswith(self._form.head.prefix))

    @property
    def _in_section(self) -> bool:
        return self._in_list or (self._form.separator or "").isspace()

    def _close_calls(self) -> bool:
        """The list of calls is over; text may follow, or a marker."""
        self._in_list = False
        self._state = self._without_marker if self._form.bare_names else self._text
        return True

    def _begin(self, call: CallReader) -> bool:
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

    def _take(self, text: str) -> None:
        """Move text with which `_pending` begins to what becomes content if there is no call."""
        self._raw += text
        self._pending = self._pending[len(text) :]

    def _cut(self, markers: tuple[str, ...], last: bool) -> str:
        """Take from `_pending` what cannot belong to a marker that may follow, white space in front of it included."""
        kept = "" if last else beginning_of_any(markers, self._pending, SPACE)
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
