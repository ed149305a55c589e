"""A tool call's JSON, read character by character while the model writes it.

`{"name": "f", "arguments": {...}}`: as soon as the name is known and the arguments have begun, their text can be
sent on as it comes. Everything is checked against JSON's grammar on the way, so that text which only looks like a
call is told apart early.
"""

import json
import re
from abc import ABC, abstractmethod
from enum import Enum, auto

from engines.text import tool_syntax

NAME_KEYS = frozenset({"name"})
ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
OTHER_KEYS = frozenset({"id", "type"})
NAME = re.compile(tool_syntax.NAME)
SPACE = " \t\n\r"


class Reading(Enum):
    GOING = auto()
    DONE = auto()
    MALFORMED = auto()


class CallReader(ABC):
    """Reads one call. `push` until `reading` is no longer GOING; `name` is set once the call is certain to be one."""

    verbatim: bool
    """The arguments are given as the model writes them, so those that are not valid go on as they are."""

    def __init__(self) -> None:
        self.reading = Reading.GOING
        self.name: str | None = None
        self.raw = ""
        """The text read while it is uncertain whether it is a call; where it is none, it is given back as content."""
        self._ready = ""
        """Argument text not yet taken."""

    @abstractmethod
    def push(self, text: str) -> int:
        """Read on; return how many characters belong to the call. The rest comes after its end, or after an error, or
        is to be given again with what follows it."""

    def take(self) -> str:
        """Return the argument text that has come since the last time."""
        ready, self._ready = self._ready, ""
        return ready

    @abstractmethod
    def rest(self, text: str) -> str:
        """The arguments that remain where the output ends in the middle, `text` being what was not used."""


class JsonReader(CallReader):
    """Reads arguments that are JSON as the model writes it."""

    verbatim = True

    def __init__(self) -> None:
        super().__init__()
        self._scanner = JsonScanner()

    def rest(self, text: str) -> str:
        return text


class CallObject(JsonReader):
    """A call as one object: `{"name": "f", "arguments": {...}}`."""

    def __init__(self, names: frozenset[str] | None = None) -> None:
        """`names`: the tools that may be called. An object counts as a call only with one of these names and with
        arguments, without other keys before them. None: any name."""
        super().__init__()
        self._names = names
        self._members: dict[str, str] = {}  # finished members: key -> JSON text of its value
        self._key: str | None = None
        self._start = 0  # index in `raw` at which the current key or value begins
        self._streaming = False

    def push(self, text: str) -> int:
        for position, character in enumerate(text):
            place, depth = self._scanner.place, self._scanner.depth
            if not self._scanner.push(character):
                self.reading = Reading.MALFORMED
                return position
            self._read(character, place, depth)
            if self.reading is not Reading.GOING:
                return position + 1
        return len(text)

    def _read(self, character: str, place: "Place", depth: int) -> None:
        """Take one character of the JSON. `place` and `depth` describe the position before it."""
        if self._streaming:
            self._stream(character)
            return
        if depth <= 1:
            self._track(character, place)
        elif depth == 2 and place is Place.FIRST_KEY and character not in SPACE:
            self._open_arguments(character)
        self.raw += character
        if self._scanner.depth == 0:
            self._close()

    def _track(self, character: str, before: "Place") -> None:
        """Follow keys and values of the outermost object. `raw` does not hold the current character yet."""
        after = self._scanner.place
        if before in (Place.KEY, Place.FIRST_KEY) and after is Place.STRING:
            self._start = len(self.raw)
        elif before is Place.STRING and after is Place.COLON:
            self._key = json.loads(self.raw[self._start :] + character)
            self._refuse_foreign_key()
        elif before is Place.VALUE and character not in SPACE:
            self._start = len(self.raw)
        elif character in ",}" and self._key is not None and before in (Place.NUMBER, Place.AFTER):
            self._members[self._key] = self.raw[self._start :]
            self._key = None

    def _refuse_foreign_key(self) -> None:
        known = NAME_KEYS | ARGUMENT_KEYS | OTHER_KEYS
        if self._names is not None and self.name is None and self._key not in known:
            self.reading = Reading.MALFORMED

    def _open_arguments(self, character: str) -> None:
        """The first character inside a member's object: where this member is the arguments, the call is certain."""
        if self.name is None and self._key in ARGUMENT_KEYS:
            self.name = self._known_name()
            self._streaming = self.name is not None
        if self._streaming:
            self._ready = self.raw[self._start :]
            self._stream(character)

    def _stream(self, character: str) -> None:
        self._ready += character
        if self._scanner.depth == 1:
            self._streaming = False
            self._members[self._key or ""] = ""
            self._key = None

    def _close(self) -> None:
        if self.name is None:
            arguments = self._whole_arguments()
            self.name = None if arguments is None else self._known_name()
            self._ready = arguments or ""
        self.reading = Reading.MALFORMED if self.name is None else Reading.DONE

    def _known_name(self) -> str | None:
        value = self._members.get("name", "")
        name = json.loads(value) if value.startswith('"') else ""
        if not NAME.fullmatch(name):
            return None
        return name if self._names is None or name in self._names else None

    def _whole_arguments(self) -> str | None:
        """The arguments of a call that could not be sent on as it came: they came first, or as a string, or not at
        all."""
        value = next((self._members[key].strip() for key in ARGUMENT_KEYS if key in self._members), None)
        if value is None:
            return "{}" if self._names is None else None
        if value.startswith('"'):
            value = json.loads(value)
        if value in ("", "null"):
            return "{}"
        return value if is_object(value) else None


class Arguments(JsonReader):
    """The arguments of a call whose name came before them, outside the JSON."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def push(self, text: str) -> int:
        for position, character in enumerate(text):
            if not self._scanner.push(character):
                self.reading = Reading.MALFORMED
                return position
            self.raw += character
            self._ready += character
            if character in '"}':
                self.name = self._name
            if self._scanner.depth == 0:
                self.reading = Reading.DONE
                return position + 1
        return len(text)


class Place(Enum):
    """Position of the next character in a JSON text."""

    VALUE = auto()
    FIRST_VALUE = auto()
    FIRST_KEY = auto()
    KEY = auto()
    COLON = auto()
    AFTER = auto()
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    NUMBER = auto()
    LITERAL = auto()


NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
NUMBER_START = re.compile(r"-?((0|[1-9][0-9]*)((\.([0-9]+)?)?|(\.[0-9]+)?[eE][+-]?[0-9]*))?")
DIGITS = "0123456789"
LITERALS = {"t": "true", "f": "false", "n": "null"}
CLOSING = {"{": "}", "[": "]"}
MAX_DEPTH = 500


class JsonScanner:
    """Checks a JSON object character by character, and refuses the first one that JSON does not allow there."""

    def __init__(self) -> None:
        self.place = Place.VALUE
        self._open: list[str] = []
        self._is_key = False
        self._rest = ""  # of a literal, the part still to come; of a number, the part read so far
        self._hex = 0

    @property
    def depth(self) -> int:
        """Number of objects and lists that are open."""
        return len(self._open)

    def push(self, character: str) -> bool:
        """Return whether the text can still become a JSON object with this as its next character."""
        if self.place in INSIDE:
            return INSIDE[self.place](self, character)
        if character in SPACE:
            return bool(self._open)
        return BETWEEN[self.place](self, character)

    def _value(self, character: str) -> bool:
        if character in CLOSING:
            return self._bracket(character)
        if not self._open:
            return False
        if character == '"':
            self.place, self._is_key = Place.STRING, False
        elif character in LITERALS:
            self.place, self._rest = Place.LITERAL, LITERALS[character][1:]
        elif NUMBER_START.fullmatch(character):
            self.place, self._rest = Place.NUMBER, character
        else:
            return False
        return True

    def _bracket(self, character: str) -> bool:
        if len(self._open) == MAX_DEPTH or (not self._open and character != "{"):
            return False
        self._open.append(character)
        self.place = Place.FIRST_KEY if character == "{" else Place.FIRST_VALUE
        return True

    def _first_value(self, character: str) -> bool:
        return self._close(character) if character == "]" else self._value(character)

    def _first_key(self, character: str) -> bool:
        return self._close(character) if character == "}" else self._key(character)

    def _key(self, character: str) -> bool:
        self.place, self._is_key = Place.STRING, True
        return character == '"'

    def _colon(self, character: str) -> bool:
        self.place = Place.VALUE
        return character == ":"

    def _after(self, character: str) -> bool:
        if character == ",":
            self.place = Place.KEY if self._open[-1] == "{" else Place.VALUE
            return True
        return self._close(character)

    def _close(self, character: str) -> bool:
        if character != CLOSING[self._open[-1]]:
            return False
        self._open.pop()
        self.place = Place.AFTER
        return True

    def _string(self, character: str) -> bool:
        if character == '"':
            self.place = Place.COLON if self._is_key else Place.AFTER
        elif character == "\\":
            self.place = Place.ESCAPE
        return character >= " " and not "\ud800" <= character <= "\udfff"

    def _escape(self, character: str) -> bool:
        self.place, self._hex = (Place.HEX, 4) if character == "u" else (Place.STRING, 0)
        return character in '"\\/bfnrtu'

    def _hex_digit(self, character: str) -> bool:
        self._hex -= 1
        if not self._hex:
            self.place = Place.STRING
        return character in "0123456789abcdefABCDEF"

    def _number(self, character: str) -> bool:
        if character in DIGITS and self._rest[-2:].isdecimal() and len(self._rest) > 2:
            return True  # a further digit changes nothing
        if NUMBER_START.fullmatch(self._rest + character):
            self._rest += character
            return True
        self.place = Place.AFTER
        return bool(NUMBER.fullmatch(self._rest)) and (character in SPACE or self._after(character))

    def _literal(self, character: str) -> bool:
        expected, self._rest = self._rest[0], self._rest[1:]
        if not self._rest:
            self.place = Place.AFTER
        return character == expected


INSIDE = {
    Place.STRING: JsonScanner._string,
    Place.ESCAPE: JsonScanner._escape,
    Place.HEX: JsonScanner._hex_digit,
    Place.NUMBER: JsonScanner._number,
    Place.LITERAL: JsonScanner._literal,
}
BETWEEN = {
    Place.VALUE: JsonScanner._value,
    Place.FIRST_VALUE: JsonScanner._first_value,
    Place.FIRST_KEY: JsonScanner._first_key,
    Place.KEY: JsonScanner._key,
    Place.COLON: JsonScanner._colon,
    Place.AFTER: JsonScanner._after,
}


def is_object(text: str) -> bool:
    """Whether the text is one JSON object, with nothing but white space around it."""
    scanner, text = JsonScanner(), text.strip(SPACE)
    for position, character in enumerate(text, 1):
        if not scanner.push(character):
            return False
        if not scanner.depth:
            return position == len(text)
    return False
