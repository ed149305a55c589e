"""A call whose arguments stand in tags one by one, read while the model writes it, and given as JSON."""

import re
from collections.abc import Mapping
from typing import Any

from engines.answers.call_object import SPACE, CallReader, Reading
from engines.answers.markers import beginning_of
from engines.answers.typed import quoted, typed, types_of
from engines.text.tool_syntax import Tags

MAX_KEY = 256
"""Most characters of an argument's name with its tags."""


STRING = frozenset({"string"})


class TaggedCall(CallReader):
    """The arguments of one call. Strings are given while they are written, other values once they are whole."""

    verbatim = False

    def __init__(self, tags: Tags, name: str, schema: Mapping[str, Any]) -> None:
        super().__init__()
        self._tags = tags
        self._name = name
        self._schema = schema
        self._key = re.compile(rf"(?P<key>[^<>\n]{{1,{MAX_KEY}}}?)(?:{_loosely(tags.between)}{_other(tags)})")
        self._close = tags.after.strip()
        self._step = self._between
        self._text = ""
        self._types: frozenset[str] = frozenset()
        self._value = ""  # what has come of a value that is no string

    def push(self, text: str) -> int:
        self._text = text
        while self.reading is Reading.GOING and self._step():
            pass
        used = len(text) - len(self._text)
        self.raw = "" if self.name else self.raw + text[:used]
        return used

    def rest(self, text: str) -> str:
        if self._step != self._in_value:
            return ""
        return quoted(text)[1:-1] if self._is_string else self._value + text

    # Each step takes what it can from `_text`, and returns False where it needs more.

    def _between(self) -> bool:
        tags = self._tags
        self._text = self._text.lstrip(SPACE)
        if self._text.startswith(tags.before):
            self._text = self._text.removeprefix(tags.before)
            self._step = self._in_key
            return True
        if self._text.startswith(tags.end):
            self._text = self._text.removeprefix(tags.end)
            self._ready += "}" if self.name else "{}"
            self.name, self.reading = self._name, Reading.DONE
        elif not (tags.before.startswith(self._text) or tags.end.startswith(self._text)):
            self._fail()
        return False

    def _in_key(self) -> bool:
        match = self._key.match(self._text)
        if match is None:
            if len(self._text) >= MAX_KEY:
                self._fail()
            return False
        key = match["key"].strip()
        self._ready += f"{', ' if self.name else '{'}{quoted(key)}: "
        self.name = self._name
        properties = self._schema.get("properties")
        self._types = types_of(properties.get(key) if isinstance(properties, Mapping) else None, self._schema)
        if self._tags.between_other:
            self._types = self._types - STRING if match["other"] else STRING
        self._ready += '"' if self._is_string else ""
        self._text = self._text[match.end() :]
        self._step = self._start_of_value
        return True

    def _start_of_value(self) -> bool:
        if not self._text:
            return False
        if self._tags.padded:
            self._text = self._text.removeprefix("\n")
        self._step = self._in_value
        return True

    def _in_value(self) -> bool:
        text, layout = self._text, "\n" if self._tags.padded else ""
        position = text.find(self._close)
        if position >= 0:
            self._add(text[:position].removesuffix(layout))
            self._end_value()
            self._text = text[position + len(self._close) :]
            self._step = self._between
            return True
        kept = beginning_of(self._close, text, layout)
        self._add(text[: len(text) - len(kept)])
        self._text = kept
        return False

    def _add(self, text: str) -> None:
        if self._is_string:
            self._ready += quoted(text)[1:-1]
        else:
            self._value += text

    def _end_value(self) -> None:
        self._ready += '"' if self._is_string else typed(self._value, self._types)
        self._value = ""

    def _fail(self) -> None:
        """What follows is no part of a call. What has been given of it is closed."""
        self.reading = Reading.MALFORMED
        self._ready += "}" if self.name else ""

    @property
    def _is_string(self) -> bool:
        return self._types == STRING


def _other(tags: Tags) -> str:
    return f"|(?P<other>{_loosely(tags.between_other)})" if tags.between_other else ""


def _loosely(tags: str) -> str:
    """A pattern for tags, with any white space between them."""
    return r"\s*".join(map(re.escape, filter(None, re.split(r"\s+(?=<)|(?<=>)\s*", tags.strip()))))
