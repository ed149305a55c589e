"""The rows of a run: a file with an object in each line, `{"item": ..., "sample": ...}`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from engines.errors import InvalidRequest
from server.evals.item_schema import ItemSchema
from server.evals.schema import Row
from server.files.lines import lines_of
from server.http.body import check_counts, check_depth
from server.http.validation import to_invalid_request

MAX_ROWS = 50_000
"""As many as a batch has."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows are. They are read when it is their turn."""

    path: Path
    places: list[tuple[int, int]]
    """Where the line of each begins and how long it is."""

    def read(self, place: int) -> Row:
        offset, length = self.places[place]
        with self.path.open("rb") as file:
            file.seek(offset)
            return Row.model_validate(orjson.loads(file.read(length)))


def read_rows(path: Path, schema: Mapping[str, Any] | None, max_line: int) -> Rows:
    """Check every row, by the eval's schema of items where it has one. Raises InvalidRequest, which names the line."""
    check = None if schema is None else ItemSchema(schema)
    places: list[tuple[int, int]] = []
    for number, (offset, line) in enumerate(lines_of(path, max_line), 1):
        if len(line) > max_line:
            raise InvalidRequest(f"line {number}: it is longer than {max_line} bytes")
        if not line.strip():
            continue
        try:
            row = parse_row(line)
            if check is not None:
                check.check(row.item)
        except InvalidRequest as error:
            raise InvalidRequest(f"line {number}: {error.message}", param=error.param) from None
        places.append((offset, len(line)))
        if len(places) > MAX_ROWS:
            raise InvalidRequest(f"A run has at most {MAX_ROWS} rows.")
    if not places:
        raise InvalidRequest("There are no rows.")
    return Rows(path, places)


def parse_row(line: bytes) -> Row:
    """Raises InvalidRequest."""
    check_counts(line)
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"it is no valid JSON: {error.msg}") from None
    try:
        row = Row.model_validate(value)
    except ValidationError as error:
        raise to_invalid_request(error.errors(include_url=False, include_context=False), value) from None
    check_depth(value)
    return row


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Whole, or not at all. Raises OSError."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    partial.rename(path)
