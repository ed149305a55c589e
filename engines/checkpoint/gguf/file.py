"""A GGUF file, the form in which llama.cpp keeps a model: what it says, and where its tensors lie.

The layout is that of `docs/gguf.md` of ggml. The package `gguf` knows what tensors stand for; its own reader makes an
array of every token: it took 4.7 seconds over a vocabulary of 49,152, and this one takes 0.1.
"""

import math
import mmap
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.checkpoint.spans import spans
from engines.errors import UnsupportedModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INSTALL = "pip install 'tuneserve[gguf]'"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""Types of values -> their letters in `struct`."""
STRING, LIST = 8, 9
ALIGNMENT = 32
"""Of the data, where the file says nothing of it."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it lies in a file."""

    name: str
    """llama.cpp's."""
    shape: tuple[int, ...]
    kind: str
    """ggml's name of its type."""
    bytes: memoryview = field(repr=False)

    def rows(self) -> "Iterator[tuple[slice, Tensor]]":
        """Copies of what lies in the file, some rows after others: which, and (rows, bytes of a row) uint8."""
        import torch

        count = math.prod(self.shape[:-1])
        size = len(self.bytes) // count
        for span in spans(count, self.shape[-1]):
            copied = bytearray(self.bytes[span.start * size : span.stop * size])
            yield span, torch.frombuffer(copied, dtype=torch.uint8).view(-1, size)

    def values(self, dtype: "torch.dtype") -> "Tensor":
        """What it stands for."""
        import torch
        from gguf import GGMLQuantizationType, dequantize

        plain, kind = {"F32": "<f4", "F16": "<f2"}.get(self.kind), GGMLQuantizationType[self.kind]
        found = torch.empty(self.shape, dtype=dtype)
        for span, rows in self.rows():
            raw = rows.numpy()
            values = raw.view(plain) if plain else dequantize(raw, kind)
            found.view(-1, self.shape[-1])[span] = torch.from_numpy(values)
        return found


@dataclass(frozen=True, slots=True)
class Texts:
    """A list of texts, which is read where it is wanted: a vocabulary is long, and mostly is not."""

    content: memoryview = field(repr=False)
    start: int
    count: int

    def read(self) -> list[str]:
        """Raises UnicodeDecodeError."""
        cursor = _Cursor(self.content, self.start)
        return [cursor.text() for _ in range(self.count)]

    def places(self, wanted: Collection[str]) -> list[int]:
        """Where the wanted are among them. No text is made of the others."""
        cursor, known = _Cursor(self.content, self.start), {text.encode() for text in wanted}
        sizes = {len(text) for text in known}
        found = []
        for place in range(self.count):
            start = cursor.at + 8
            cursor.skip_text()
            if cursor.at - start in sizes and bytes(self.content[start : cursor.at]) in known:
                found.append(place)
        return found


@dataclass(frozen=True, slots=True)
class GgufFile:
    path: Path
    said: dict[str, Any]
    """Its metadata; lists of texts are `Texts`."""
    tensors: dict[str, StoredTensor]

    @property
    def architecture(self) -> str:
        return str(self.said["general.architecture"])

    def own(self, name: str, default: Any = None) -> Any:
        """What it says of its architecture. Raises UnsupportedModel where it has to and does not."""
        found = self.said.get(f"{self.architecture}.{name}", default)
        if found is None:
            raise unsupported(self.path, f"does not say its {self.architecture}.{name}")
        return found


def open_gguf(model: str) -> GgufFile:
    """Raises UnsupportedModel for what is no GGUF file of a model, or not a whole one."""
    path = Path(model).expanduser()
    if find_spec("gguf") is None:
        raise unsupported(path, f"is a GGUF file, and the package gguf is not installed here: {INSTALL}")
    try:
        with path.open("rb") as opened:
            content = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        reason = "it is empty" if isinstance(error, ValueError) else error.strerror
        raise unsupported(path, f"cannot be read as a GGUF file: {reason}") from error
    if content[: len(MAGIC)] != MAGIC:
        raise unsupported(path, "is no GGUF file: it does not begin as one")
    try:
        said, tensors = _read(content)
    except (struct.error, UnicodeDecodeError, _Unknown) as error:
        reason = str(error) if isinstance(error, _Unknown) else "it ends too early, or is damaged"
        raise unsupported(path, f"is not a whole GGUF file that is known here: {reason}") from error
    file = GgufFile(path, said, tensors)
    if "general.architecture" not in said:
        raise unsupported(path, "does not say its general.architecture")
    if (kind := said.get("general.type", "model")) != "model":
        raise unsupported(path, f"holds no model, but what llama.cpp calls {kind!r}")
    if said.get("split.count", 1) > 1:
        raise unsupported(path, "is a part of a model: put the parts together by `llama-gguf-split --merge`")
    return file


def unsupported(path: Path, what: str) -> UnsupportedModel:
    return UnsupportedModel(f"{path.name!r} {what}", param="model")


class _Unknown(ValueError):
    """What it says in so many words."""


class _Cursor:
    """Values one after another. Raises struct.error where they end."""

    def __init__(self, content: memoryview, at: int) -> None:
        self._content, self.at = content, at

    def numbers(self, letters: str) -> tuple[Any, ...]:
        layout = f"<{letters}"
        found = struct.unpack_from(layout, self._content, self.at)
        self.at += struct.calcsize(layout)
        return found

    def skip_text(self) -> None:
        (length,) = self.numbers("Q")
        self.at += length

    def text(self) -> str:
        start = self.at + 8
        self.skip_text()
        if self.at > len(self._content):
            raise struct.error("beyond the end")
        return str(self._content[start : self.at], "utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != LIST:
            return self.numbers(_letter(kind))[0]
        kind, count = self.numbers("IQ")
        if kind != STRING:
            return list(self.numbers(f"{count}{_letter(kind)}"))
        start = self.at
        for _ in range(count):
            self.skip_text()
        if self.at > len(self._content):
            raise struct.error("beyond the end")
        return Texts(self._content, start, count)


def _letter(kind: int) -> str:
    if kind not in NUMBERS:
        raise _Unknown(f"it has a value of the type {kind}")
    return NUMBERS[kind]


def _read(content: memoryview) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    cursor = _Cursor(content, len(MAGIC))
    (version,) = cursor.numbers("I")
    if version not in VERSIONS:
        raise _Unknown(f"its version is {version}; known are {VERSIONS[0]} and {VERSIONS[1]}, in little-endian")
    count, entries = cursor.numbers("QQ")
    said = {}
    for _ in range(entries):
        name, (kind,) = cursor.text(), cursor.numbers("I")
        said[name] = cursor.value(kind)
    places = [_place(cursor) for _ in range(count)]
    step = said.get("general.alignment", ALIGNMENT)
    start = -(-cursor.at // step) * step
    return said, {place[0]: _tensor(content, start, *place) for place in places}


def _place(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and where its data begin."""
    name, (dims,) = cursor.text(), cursor.numbers("I")
    sizes = cursor.numbers(f"{dims}Q")
    kind, offset = cursor.numbers("IQ")
    return name, tuple(reversed(sizes)), kind, offset


def _tensor(content: memoryview, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> StoredTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if kind not in {*GGMLQuantizationType}:
        raise _Unknown(f"{name} is of a type that is not known here: {kind}")
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    values = 1
    for each in shape:
        values *= each
    if not values or shape[-1] % block:
        raise _Unknown(f"{name} has the shape {shape}")
    end = start + offset + values // block * size
    if end > len(content):
        raise _Unknown(f"it ends before {name} does")
    return StoredTensor(name, shape, GGMLQuantizationType(kind).name, content[start + offset : end])
