"""The answers to a data set, a line of JSON each, in a file that bears any kill.

A line is appended whole, under a lock that several processes share, when its row is answered; what a kill has left of
a half-written one goes before the next is written. Each line has its row and the row's number, so that a run that goes
on with the file asks only for what is not there, and finds out where the file answers other data. Once all is answered,
the lines are put into the order of the rows.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from engines.adapters.disk import sync
from engines.errors import Conflict

BEGINNING = b'{"index":'
"""What every line begins with."""
PIECE = 1 << 16
"""Bytes that are read at a time to find the end of a file's last whole line."""


class Results:
    def __init__(self, path: Path) -> None:
        """Read what is there. Raises Conflict where that is no file of answers, OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._rows: dict[int, bytes] = {}
        self._size = 0
        if path.exists():
            self.look()
        with self._locked():
            pass

    def __len__(self) -> int:
        """Rows that are answered."""
        return len(self._rows)

    def look(self) -> None:
        """Take in what other processes have added. Raises Conflict."""
        with self.path.open("rb") as file:
            file.seek(self._size)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._size += len(line)
                found = self._read(line)
                self._rows[found["index"]] = _digest(found["row"])

    def has(self, index: int, row: Mapping[str, Any]) -> bool:
        """Whether the row is answered. Raises Conflict where the answer is to another row."""
        known = self._rows.get(index)
        if known is not None and known != _digest(row):
            message = f"{self.path.name} answers another row {index} than the data has now: give another result_path"
            raise Conflict(message, param="result_path")
        return known is not None

    def add(self, line: Mapping[str, Any]) -> None:
        """Raises OSError."""
        data = orjson.dumps(line) + b"\n"
        with self._locked() as file:
            file.write(data)
        self._rows[line["index"]] = _digest(line["row"])

    def lines(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            for line in file:
                yield self._read(line)

    def put_in_order(self) -> None:
        """Put the lines into the order of the rows, in one moment. Raises OSError."""
        places = self._places()
        if places == sorted(places):
            return sync(self.path)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with self.path.open("rb") as file, partial.open("wb") as ordered:
            for _, offset in sorted(places):
                file.seek(offset)
                ordered.write(file.readline())
        sync(partial)
        partial.replace(self.path)
        sync(self.path.parent)

    def _places(self) -> list[tuple[int, int]]:
        """Number of each row, and where its line begins."""
        places, offset = [], 0
        with self.path.open("rb") as file:
            for line in file:
                places.append((self._read(line)["index"], offset))
                offset += len(line)
        return places

    def _read(self, line: bytes) -> dict[str, Any]:
        try:
            found: dict[str, Any] = orjson.loads(line)
            if isinstance(found["index"], int) and "response" in found and isinstance(found["row"], dict):
                return found
        except (ValueError, TypeError, KeyError):
            pass
        raise _foreign(self.path)

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """The file, to append whole lines to; no other process appends meanwhile."""
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._cut(file)
            yield file
            file.flush()

    def _cut(self, file: BinaryIO) -> None:
        """Take off what a kill has left of a line. Raises Conflict where that is none of ours."""
        whole = end = file.seek(0, os.SEEK_END)
        rest = b""
        while whole and b"\n" not in rest:
            step = min(PIECE, whole)
            whole -= step
            file.seek(whole)
            rest = file.read(step) + rest
        rest = rest.rpartition(b"\n")[2]
        if rest and not (rest.startswith(BEGINNING) or BEGINNING.startswith(rest)):
            raise _foreign(self.path)
        file.truncate(end - len(rest))


def _foreign(path: Path) -> Conflict:
    message = f"{path.name} is there already, and holds no answers of ours: give another result_path"
    return Conflict(message, param="result_path")


def _digest(row: Mapping[str, Any]) -> bytes:
    return hashlib.blake2b(orjson.dumps(row, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()
