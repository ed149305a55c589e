"""Reads a multipart form as it comes in: never more of it in memory than a piece of a file."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from urllib.parse import unquote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from engines.errors import InvalidRequest

MAX_PARTS = 16
MAX_FIELD_BYTES = 1024
MAX_FILENAME = 255


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class FilePart:
    name: str
    filename: str
    pieces: AsyncIterator[bytes]
    """To be read before the next part is asked for."""


class Form:
    """The parts of a form. Raises InvalidRequest where it is none."""

    def __init__(self, content_type: str, stream: AsyncIterator[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            shown = content_type.split(";")[0].strip()[:60]
            raise InvalidRequest(f"The content type must be multipart/form-data with a boundary, not {shown!r}.")
        self._stream = stream
        self._header = b""
        self._value = b""
        self._disposition: dict[bytes, bytes] = {}
        self._events: deque[bytes | _Begin | None] = deque()  # data of a part, a part, the end of one
        self._ended = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from None

    async def parts(self) -> AsyncGenerator[Field | FilePart, None]:
        for _ in range(MAX_PARTS):
            begin = await self._next()
            if begin is None:
                return
            assert isinstance(begin, _Begin), "the part before has been read"
            if begin.filename is None:
                yield Field(begin.name, await self._field(begin.name))
            else:
                yield FilePart(begin.name, begin.filename, self._pieces())
        raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")

    async def _field(self, name: str) -> str:
        value = b""
        async for piece in self._pieces():
            value += piece
            if len(value) > MAX_FIELD_BYTES:
                raise InvalidRequest(f"The field is longer than {MAX_FIELD_BYTES} bytes.", param=name[:100])
        return value.decode(errors="replace")

    async def _pieces(self) -> AsyncIterator[bytes]:
        while (piece := await self._next()) is not None:
            assert isinstance(piece, bytes), "a part ends before the next begins"
            yield piece

    async def _next(self) -> "bytes | _Begin | None":
        """What comes next; None for the end of a part, and of the form after the last."""
        while not self._events:
            if self._ended:
                return None
            try:
                self._parser.write(await anext(self._stream))
            except StopAsyncIteration:
                raise InvalidRequest("The form breaks off before its last boundary.") from None
            except FormParserError as error:
                raise _malformed(error) from None
        return self._events.popleft()

    # ---- what the parser finds

    def _on_part_begin(self) -> None:
        self._disposition = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, self._disposition = parse_options_header(self._value)
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        filename = self._disposition.get(b"filename")
        self._events.append(
            _Begin(
                _text(self._disposition.get(b"name", b"")),
                None if filename is None else plain_filename(_text(filename)),
            )
        )

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(data[start:end])

    def _on_part_end(self) -> None:
        self._events.append(None)

    def _on_end(self) -> None:
        self._ended = True


@dataclass(frozen=True, slots=True)
class _Begin:
    name: str
    filename: str | None


def _malformed(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"The body is not a multipart form: {str(error)[:100]}", code="invalid_form")


def _text(value: bytes) -> str:
    """As browsers and clients write names: UTF-8, with quotes and ends of lines escaped."""
    text = value.decode(errors="replace")
    for escaped in ("%22", "%0D", "%0A"):
        text = text.replace(escaped, unquote(escaped))
    return text


def plain_filename(given: str) -> str:
    """Its last part, without what would not do in a header or a terminal. A long one keeps its end, which says what the
    file is."""
    name = given.replace("\\", "/").rpartition("/")[2]
    return "".join(letter if letter.isprintable() else "_" for letter in name)[-MAX_FILENAME:]
