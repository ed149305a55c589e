"""The input of a batch: which requests it has and where, or what is wrong with its lines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, ValidationError

from engines.errors import InvalidRequest
from server.files.lines import lines_of
from server.http.body import RequestBody, check_counts
from server.http.validation import to_invalid_request

MAX_REQUESTS = 50_000
"""OpenAI's."""
MAX_ERRORS = 100
"""A file of another kind has an error in each line."""


class Line(RequestBody):
    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the requests are. They are read when it is their turn: a whole file of them would not fit the memory."""

    path: Path
    places: dict[str, tuple[int, int]]
    """Custom id -> where its line begins and how long it is, in the order of the file."""
    model: str | None
    """The model that all name."""

    def read(self, custom_id: str) -> dict[str, Any]:
        """The body of one request."""
        offset, length = self.places[custom_id]
        with self.path.open("rb") as file:
            file.seek(offset)
            body: dict[str, Any] = orjson.loads(file.read(length))["body"]
        return body


class InvalidInput(Exception):
    """The batch cannot be run: `errors` are those of OpenAI's Batch object."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = errors


def read_plan(path: Path, endpoint: str, max_line: int) -> Plan:
    """Check every line's frame; what it asks for is checked as it is answered. Raises InvalidInput."""
    places: dict[str, tuple[int, int]] = {}
    models: set[str | None] = set()
    errors: list[dict[str, Any]] = []
    for number, (offset, data) in enumerate(lines_of(path, max_line), 1):
        if not data.strip():
            continue
        try:
            line = _parse(data, endpoint, max_line)
            if line.custom_id in places:
                raise InvalidRequest(
                    f"The custom_id {line.custom_id[:100]!r} is that of an earlier line.",
                    param="custom_id",
                    code="duplicate_custom_id",
                )
        except InvalidRequest as error:
            errors.append(_error(error.code, error.message, error.param, number))
            if len(errors) == MAX_ERRORS:
                break
            continue
        places[line.custom_id] = (offset, len(data))
        if len(models) < 2:
            model = line.body.get("model")
            models.add(model if isinstance(model, str) else None)
    if len(places) > MAX_REQUESTS:
        errors.append(_error("too_many_requests", f"A batch has at most {MAX_REQUESTS} requests.", None, None))
    if not places and not errors:
        errors.append(_error("empty_file", "The input file has no requests.", None, None))
    if errors:
        raise InvalidInput(errors)
    return Plan(path, places, models.pop() if len(models) == 1 else None)


def _parse(data: bytes, endpoint: str, max_line: int) -> Line:
    if len(data) > max_line:
        raise InvalidRequest(f"The line is longer than {max_line} bytes.", code="line_too_long")
    check_counts(data)
    try:
        frame = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise InvalidRequest("This line is not parseable as valid JSON.", code="invalid_json_line") from None
    if not isinstance(frame, dict):
        raise InvalidRequest("This line is not a JSON object.", code="invalid_json_line")
    try:
        line = Line.model_validate(frame)
    except ValidationError as error:
        raise to_invalid_request(error.errors(include_url=False, include_context=False), frame) from None
    if line.url != endpoint:
        raise InvalidRequest(
            f"The url {line.url[:100]!r} is not the batch's endpoint, {endpoint!r}.", param="url", code="invalid_url"
        )
    return line


def _error(code: str | None, message: str, param: str | None, line: int | None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}
