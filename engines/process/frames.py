"""What the server's process and an engine's process say to each other: msgpack messages, each behind a mark and its
length.

The same for every engine, whatever environment its process runs in.
"""

import struct
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from engines import errors
from engines.capabilities import Capabilities
from engines.errors import EngineFailure, InvalidRequest, TuneserveError
from engines.types import EngineStats, GenerationRequest, PoolingRequest, TokenOutput

_HEADER = struct.Struct("!4sI")
_MARK = b"tnsv"
"""The first bytes of every message, so that anything else is noticed at once."""
MAX_BYTES = 1 << 30
"""The longest message, far beyond the logprobs of the longest prompt."""


class Unreadable(EngineFailure):
    """What was received is no message: the process that sent it is broken."""


class Start(msgspec.Struct, tag=True):
    """First message to the engine."""

    config: dict[str, Any]
    """The fields of the engine's configuration."""


class Generate(msgspec.Struct, tag=True):
    request: GenerationRequest


class Pool(msgspec.Struct, tag=True):
    request: PoolingRequest


class Finish(msgspec.Struct, tag=True):
    request_id: str
    index: int


class Abort(msgspec.Struct, tag=True):
    request_id: str


class LoadAdapter(msgspec.Struct, tag=True):
    version: str
    folder: str
    pinned: bool


class UnloadAdapter(msgspec.Struct, tag=True):
    version: str


class Sleep(msgspec.Struct, tag=True):
    pass


class WakeUp(msgspec.Struct, tag=True):
    pass


class Ping(msgspec.Struct, tag=True):
    """Asks for a heartbeat: a `Step`, even with nothing to tell, which shows that the loop still runs."""


class Failure(msgspec.Struct):
    """An error of `engines.errors`, taken apart."""

    kind: str
    message: str
    param: str | None
    code: str | None


class Ready(msgspec.Struct, tag=True):
    """The model is loaded."""

    capabilities: Capabilities


class Refused(msgspec.Struct, tag=True):
    """The model cannot be run; the process ends."""

    failure: Failure


class Step(msgspec.Struct, tag=True):
    """Everything that one step has to tell."""

    stats: EngineStats
    received: int
    """How many requests the process has taken in since it started: `stats` knows of these."""
    outputs: list[tuple[str, TokenOutput]] = []
    pooled: list[tuple[str, list[float]]] = []
    failures: list[tuple[str, Failure]] = []
    adapters: list[tuple[str, Failure | None]] = []
    """Versions that have been read, or could not be."""
    rests: list[Failure | None] = []
    """How each `Sleep` and `WakeUp` went, in their order."""


ToEngine = Start | Generate | Pool | Finish | Abort | LoadAdapter | UnloadAdapter | Sleep | WakeUp | Ping
FromEngine = Ready | Refused | Step

_encoder = msgspec.msgpack.Encoder()
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode


def frame(message: ToEngine | FromEngine) -> bytes:
    """Raises InvalidRequest where a number has more than 64 bits, or the message more than `MAX_BYTES`."""
    try:
        body = _encoder.encode(message)
    except OverflowError:
        raise InvalidRequest("a number in the request is out of range") from None
    if len(body) > MAX_BYTES:
        raise InvalidRequest(f"the request comes to {len(body)} bytes, of which an engine takes {MAX_BYTES}")
    return _HEADER.pack(_MARK, len(body)) + body


Message = TypeVar("Message")


class Splitter(Generic[Message]):
    """Cuts what a stream brings, in parts of whatever size, into messages."""

    def __init__(self, decode: Callable[[bytearray], Message]) -> None:
        self._decode = decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now. Raises Unreadable."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _HEADER.size:
            end = _HEADER.size + self._length()
            if len(self._buffer) < end:
                break
            messages.append(self._read(self._buffer[_HEADER.size : end]))
            del self._buffer[:end]
        return messages

    def _length(self) -> int:
        mark, length = _HEADER.unpack_from(self._buffer)
        if mark != _MARK:
            raise Unreadable("no message begins like this")
        if length > MAX_BYTES:
            raise Unreadable(f"a message of {length} bytes")
        return int(length)

    def _read(self, body: bytearray) -> Message:
        try:
            return self._decode(body)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise Unreadable(f"a message that is none: {error}") from error


def take_apart(error: TuneserveError) -> Failure:
    return Failure(type(error).__name__, error.message, error.param, error.code)


def put_together(failure: Failure) -> TuneserveError:
    kind: Any = getattr(errors, failure.kind)
    error: TuneserveError = kind(failure.message, param=failure.param, code=failure.code)
    return error
