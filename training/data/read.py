"""The rows of a file, one after another, with the line each begins at (in a parquet file, its number). Whatever the
file holds, little of it is in memory.

A file that is no data (binary, another encoding, a line without end) is found out within MAX_ROW bytes.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MAX_ROW = 16 << 20
"""Bytes of one row: more than any model's context holds."""
CHUNK = 1 << 20
ROWS = 64
"""Rows of a parquet file in memory at once."""
BOM = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Read:
    """A row of a file, or why there is none at this line."""

    line: int
    """From 1."""
    value: Any = None
    problem: str | None = None


class Unreadable(Exception):
    """What comes after this line cannot be told either."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


def form_of(path: Path) -> str | None:
    """The end of a file's name that says what is in it, among READERS, compressed by gzip or not; None for others."""
    name = path.name.lower().removesuffix(GZIP)
    form = next((form for form in READERS if name.endswith(form)), None)
    return None if form == PARQUET and name != path.name.lower() else form


def name_of(path: Path) -> str:
    """A file's name without those ends."""
    return path.name[: path.name.lower().rindex(form_of(path) or path.suffix.lower())]


def read_file(path: Path) -> Iterator[Read]:
    """Raises Unreadable, OSError."""
    form = form_of(path)
    assert form is not None
    if path.name.lower().endswith(GZIP):
        yield from _unpacked(path, READERS[form])
    else:
        with path.open("rb") as file:
            yield from _read(file, READERS[form])


def _unpacked(path: Path, reader: "Reader") -> Iterator[Read]:
    line = 0
    try:
        with gzip.open(path, "rb") as file:
            for found in _read(file, reader):  # type: ignore[arg-type]  # all of BinaryIO that is read
                line = found.line
                yield found
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Unreadable(line + 1, f"this is not a whole gzip file: {error}") from error


def _read(file: BinaryIO, reader: "Reader") -> Iterator[Read]:
    start = file.read(4)
    if start[:2] in UTF16:
        raise Unreadable(1, "the file is UTF-16: save it as UTF-8")
    file.seek(len(BOM) if start.startswith(BOM) else 0)
    yield from reader(file)


def _jsonl(file: BinaryIO) -> Iterator[Read]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            text = _text_of(line)
            yield _row(number, json.loads(text), text)
        except ValueError as error:
            yield Read(number, problem=_wrong(error))
        except RecursionError:
            yield Read(number, problem="this is not JSON that can be read: it is nested too deeply")


def _row(line: int, value: Any, text: str) -> Read:
    """The value, unless it holds what is no text, which JSON can write all the same."""
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Read(line, problem="there is half a character, a surrogate without its other half")
    return Read(line, value)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(MAX_ROW + 1):
        number += 1
        if len(line) > MAX_ROW:
            raise Unreadable(number, f"the line is longer than {MAX_ROW >> 20} MiB: no model learns from so long a row")
        if b"\0" in line:
            raise Unreadable(number, "there are zero bytes: this is a binary file, or not UTF-8")
        yield number, line


class _NotUtf8(ValueError):
    pass


def _text_of(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise _NotUtf8(
            f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8: save the file as UTF-8"
        ) from error


def _wrong(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"this is not valid JSON: {error.msg} (column {error.colno})"
    return str(error)


def _json(file: BinaryIO) -> Iterator[Read]:
    """A list of objects; objects one after another are read as well."""
    window = _Window(file)
    in_list = False
    if window.skip_blanks() == "[":
        in_list = True
        window.take(1)
    while character := window.skip_blanks(also="," if in_list else ""):
        if character == "]" and in_list:
            return
        if character != "{":
            raise Unreadable(window.line, f"an object must begin here, not {character!r}")
        yield window.object()
    if in_list:
        raise Unreadable(window.line, "the list does not end: there is no ']'")


class _Window:
    """The part of a text that is looked at."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes = b""
        self._text = ""
        self._at = 0
        self.line = 1

    def skip_blanks(self, also: str = "") -> str:
        """The next character that is none; "" at the end."""
        while True:
            while self._at < len(self._text):
                character = self._text[self._at]
                if not (character.isspace() or character in also):
                    return character
                self.take(1)
            if not self._more():
                return ""

    def take(self, length: int) -> None:
        self.line += self._text.count("\n", self._at, self._at + length)
        self._at += length

    def object(self) -> Read:
        """The object that begins here. Raises Unreadable where none does."""
        line = self.line
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                have = len(self._text) - self._at
                if have > MAX_ROW and not _is_early(error, len(self._text)):
                    raise Unreadable(line, f"no object of at most {MAX_ROW >> 20} MiB begins here") from None
                if not _is_early(error, len(self._text)) and self._more(max(CHUNK, 2 * have)):
                    continue
                if isinstance(error, json.JSONDecodeError):
                    at = self.line + self._text.count("\n", self._at, error.pos)
                    raise Unreadable(at, f"this is not valid JSON: {error.msg}") from None
                raise Unreadable(line, "this is not JSON that can be read") from None
            found = _row(line, value, self._text[self._at : end])
            self.take(end - self._at)
            return found

    def _more(self, size: int = CHUNK) -> bool:
        """Read on; False at the end."""
        data = self._file.read(size)
        if b"\0" in data:
            raise Unreadable(self.line, "there are zero bytes: this is a binary file, or not UTF-8")
        self._bytes += data
        try:
            text = self._bytes.decode()
            self._bytes = b""
        except UnicodeDecodeError as error:
            if not data or len(self._bytes) - error.start >= 4:
                line = self.line + self._text.count("\n", self._at) + self._bytes.count(b"\n", 0, error.start)
                raise Unreadable(
                    line, f"byte 0x{self._bytes[error.start]:02x} is not UTF-8: save the file as UTF-8"
                ) from error
            text, self._bytes = self._bytes[: error.start].decode(), self._bytes[error.start :]
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(data)


def _is_early(error: Exception, end: int) -> bool:
    """Whether the text is wrong, rather than not all there yet."""
    if not isinstance(error, json.JSONDecodeError) or error.msg.startswith("Unterminated"):
        return False
    return error.pos < end - 100


def _csv(file: BinaryIO, delimiter: str = ",") -> Iterator[Read]:
    """The first line names the columns. An empty cell is null."""
    csv.field_size_limit(MAX_ROW)
    place = [0]

    def lines() -> Iterator[str]:
        for number, line in _lines(file):
            place[0] = number
            yield _text_of(line)

    reader = csv.reader(lines(), strict=True, delimiter=delimiter)
    line = 1
    try:
        names = next(reader, [])
        while True:
            line = place[0] + 1
            cells = next(reader, None)
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) > len(names):
                yield Read(line, problem=f"there are {len(cells)} values for {len(names)} columns")
                continue
            yield Read(
                line, dict.fromkeys(names) | {name: cell or None for name, cell in zip(names, cells, strict=False)}
            )
    except csv.Error as error:
        raise Unreadable(line, f"this is not valid CSV: {error}") from error
    except _NotUtf8 as error:
        raise Unreadable(place[0], str(error)) from error


def _tsv(file: BinaryIO) -> Iterator[Read]:
    return _csv(file, delimiter="\t")


def _txt(file: BinaryIO) -> Iterator[Read]:
    """Each line is a text."""
    for number, line in _lines(file):
        try:
            text = _text_of(line).rstrip("\r\n")
        except _NotUtf8 as error:
            yield Read(number, problem=str(error))
            continue
        if text.strip():
            yield Read(number, {"text": text})


def _parquet(file: BinaryIO) -> Iterator[Read]:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise Unreadable(1, "parquet files need the package pyarrow: install tuneserve[train]") from error
    number = 0
    try:
        for batch in ParquetFile(file).iter_batches(batch_size=ROWS):
            for row in batch.to_pylist():
                number += 1
                yield Read(number, {name: without_nulls(value) for name, value in row.items()})
    except (pa.ArrowException, OSError) as error:
        raise Unreadable(number + 1, f"this is not a parquet file that can be read: {error}") from error


def without_nulls(value: Any) -> Any:
    """Leave out null fields of objects: Arrow gives each object the fields of all."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return value


Reader = Callable[[BinaryIO], Iterator[Read]]
PARQUET = ".parquet"
TXT = ".txt"
READERS: dict[str, Reader] = {
    ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv, TXT: _txt, PARQUET: _parquet
}  # fmt: skip
"""End of a file's name -> what reads such a file."""
GZIP = ".gz"
"""May follow every other end but parquet's."""
