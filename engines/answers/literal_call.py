"""A call whose arguments are literals: `f(city="Rome", days=[1, 2])`, or `f{city:<|"|>Rome<|"|>,days:[1,2]}`."""

import json
import re
from collections.abc import Mapping
from typing import Any

from engines.answers.call_object import CallReader, Reading
from engines.answers.markers import beginning_of
from engines.answers.typed import quoted, typed, types_of
from engines.text.tool_syntax import Literals

MAX_DEPTH = 100
OPENING, CLOSING = "([{", ")]}"
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|\n|.)", re.DOTALL)
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": "", "\\": "\\", "'": "'", '"': '"'}
WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
"""Words of either language, as JSON."""


class LiteralCall(CallReader):
    """The arguments of one call, given once all have come. `push` from behind the bracket that opens them."""

    verbatim = False

    def __init__(self, syntax: Literals, name: str, schema: Mapping[str, Any]) -> None:
        super().__init__()
        self._syntax = syntax
        self._name = name
        self._schema = schema
        self._open: list[str] = [syntax.close]
        self._quote = ""

    def push(self, text: str) -> int:
        position = 0
        while position < len(text) and self.reading is Reading.GOING:
            after = self._in_string(text, position) if self._quote else self._outside(text, position)
            if after == position and self.reading is Reading.GOING:
                break
            position = after
        self.raw += text[:position]
        if self.reading is Reading.DONE:
            self._close()
        return position

    def rest(self, text: str) -> str:
        return ""

    def _outside(self, text: str, position: int) -> int:
        """The position behind the next character or quotation mark."""
        quote = next((quote for quote in self._syntax.quotes if text.startswith(quote, position)), None)
        if quote is not None:
            self._quote = quote
            return position + len(quote)
        if any(quote.startswith(text[position:]) for quote in self._syntax.quotes):
            return position
        character = text[position]
        if character in OPENING:
            self._open.append(CLOSING[OPENING.index(character)])
            self.reading = Reading.MALFORMED if len(self._open) > MAX_DEPTH else Reading.GOING
        elif character in CLOSING:
            fits = self._open.pop() == character
            self.reading = Reading.MALFORMED if not fits else Reading.GOING if self._open else Reading.DONE
        return position + 1

    def _in_string(self, text: str, position: int) -> int:
        """The position behind the end of the string, or as far as it has come."""
        pattern = rf"\\.|{re.escape(self._quote)}" if self._syntax.escapes else re.escape(self._quote)
        for match in re.compile(pattern, re.DOTALL).finditer(text, position):
            if match[0] == self._quote:
                self._quote = ""
                return match.end()
            position = match.end()
        kept = beginning_of(self._quote, text[position:], "")
        if not kept and self._syntax.escapes and text[position:].endswith("\\"):
            kept = "\\"
        return len(text) - len(kept)

    def _close(self) -> None:
        try:
            self._ready = _Reader(self._syntax, self._schema).arguments(self.raw[:-1])
            self.name = self._name
        except (ValueError, RecursionError):
            self.reading = Reading.MALFORMED


class _Reader:
    """Text of whole arguments to JSON. ValueError where they are none."""

    def __init__(self, syntax: Literals, schema: Mapping[str, Any]) -> None:
        self._syntax = syntax
        self._schema = schema
        strings = "|".join(_string(quote, escapes=syntax.escapes) for quote in syntax.quotes)
        bare = r"[^\s\[\]{}(),:=\"']+" if syntax.escapes else r"[^\[\]{},:]+"
        self._token = re.compile(rf"\s*(?:(?P<string>{strings})|(?P<sign>[\[\]{{}}(),:=])|(?P<bare>{bare}))", re.DOTALL)
        self._tokens: list[tuple[str, str]] = []

    def arguments(self, text: str) -> str:
        self._tokens = list(self._split(text))[::-1]
        properties = self._schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        members: dict[str, str] = {}
        while self._tokens:
            key = self._key()
            self._expect(self._syntax.assign)
            members[key] = self._argument(types_of(properties.get(key), self._schema))
            if self._tokens:
                self._expect(",")
        return "{" + ", ".join(f"{quoted(key)}: {value}" for key, value in members.items()) + "}"

    def _split(self, text: str) -> Any:
        position, end = 0, len(text.rstrip())
        while position < end:
            match = self._token.match(text, position)
            if match is None or match.lastgroup is None:
                raise ValueError(text[position:])
            yield (
                match.lastgroup,
                match[match.lastgroup].strip() if match.lastgroup == "bare" else match[match.lastgroup],
            )
            position = match.end()

    def _argument(self, types: frozenset[str]) -> str:
        kind, text = self._tokens[-1] if self._tokens else ("", "")
        if kind == "bare" and not self._syntax.escapes:
            self._tokens.pop()
            return typed(text, types)
        value = self._value()
        return typed(json.loads(value), types) if kind == "string" and self._syntax.typed else value

    def _value(self) -> str:
        kind, text = self._next()
        if kind == "string":
            return quoted(self._strings(text))
        if kind == "bare":
            return self._bare(text)
        if text == "{":
            return "{" + ", ".join(self._items("}", self._member)) + "}"
        if text in "[(":
            return "[" + ", ".join(self._items("]" if text == "[" else ")", self._value)) + "]"
        raise ValueError(text)

    def _strings(self, text: str) -> str:
        """One string, or several in a row, which are one."""
        value = self._string_value(text)
        while self._tokens and self._tokens[-1][0] == "string":
            value += self._string_value(self._next()[1])
        return value

    def _string_value(self, text: str) -> str:
        quote = next(quote for quote in self._syntax.quotes if text.startswith(quote))
        inner = text[len(quote) : -len(quote)]
        return ESCAPE.sub(_unescaped, inner) if self._syntax.escapes else inner

    def _bare(self, text: str) -> str:
        if text in WORDS:
            return WORDS[text]
        if NUMBER.fullmatch(text):
            return text
        if self._syntax.escapes:
            raise ValueError(text)
        return quoted(text)

    def _items(self, close: str, item: Any) -> Any:
        while self._peek() != close:
            yield item()
            if self._peek() != close:
                self._expect(",")
        self._next()

    def _member(self) -> str:
        key = self._key()
        self._expect(":")
        return f"{quoted(key)}: {self._value()}"

    def _key(self) -> str:
        kind, text = self._next()
        if kind == "sign":
            raise ValueError(text)
        return self._strings(text) if kind == "string" else text

    def _peek(self) -> str:
        return self._tokens[-1][1] if self._tokens and self._tokens[-1][0] == "sign" else ""

    def _next(self) -> tuple[str, str]:
        if not self._tokens:
            raise ValueError("the arguments end too early")
        return self._tokens.pop()

    def _expect(self, sign: str) -> None:
        if self._next() != ("sign", sign):
            raise ValueError(f"{sign} expected")


def _string(quote: str, *, escapes: bool) -> str:
    mark = re.escape(quote)
    inner = rf"(?:\\.|[^\\{mark}])*" if escapes else rf"(?:(?!{mark}).)*"
    return f"{mark}{inner}{mark}"


def _unescaped(match: re.Match[str]) -> str:
    text = match[1]
    if text[0] in "ux" and len(text) > 1:
        return chr(int(text[1:], 16))
    return ESCAPED.get(text, match[0])
