"""Request bodies: read within the size limit, parsed once, validated; every fault is a 400 or 413 in OpenAI's shape."""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import orjson
from fastapi import Depends, Request
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema

from engines.errors import InvalidRequest
from server.deps import find_part
from server.http.errors import BodyTooLarge
from server.http.ignored import Ignored
from server.http.integers import with_integers
from server.http.settings import HttpSettings
from server.http.validation import to_invalid_request, unknown_parameter
from server.pools import Pools

Model = TypeVar("Model", bound="RequestBody")

MIB = 1 << 20
MAX_DEPTH = 100
"""Levels of nesting. What reads the parsed body later may recurse."""
MAX_CONTAINERS = 50_000
"""Objects of a body, and lists of it. Each costs much more than its two bytes."""
MAX_MEMBERS = 100_000
"""Members of its objects together."""
MAX_VALUES = 600_000
"""Members of objects and items of lists together."""
LIMITS = {
    b"[": (MAX_CONTAINERS, "lists"),
    b"{": (MAX_CONTAINERS, "objects"),
    b":": (MAX_MEMBERS, "members of objects"),
    b",": (MAX_VALUES, "values"),
}
"""Sign in a text of JSON -> how often it may occur, and what it is counted for."""
LONG = 8192
"""Bytes. A longer body is parsed and read in a thread, so that the event loop goes on meanwhile."""
TRIES = 8
"""How often a body is read again with integers in place of whole floats: of each list, one is found at a time."""
LINGER_SECONDS = 5.0
SIGNS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{:,]')
"""Texts, to be left out, and the signs that separate values."""
JSON_TYPES = re.compile(r"application/([\w.-]+\+)?json", re.IGNORECASE)


NULL = {"type": "null"}
ANNOTATIONS = frozenset({"title", "description", "default", "examples", "deprecated"})
"""Keywords of JSON Schema that refuse nothing."""

Value = TypeVar("Value")
Items = Annotated[list[Value], Field(fail_fast=True)]
"""A list in a body. The first wrong item is told: to find all of a million takes seconds."""
Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=64, pattern=r"^[^\x00]*$")],
        Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")],
    ],
    Field(max_length=16),
]
"""What clients attach to jobs and batches for themselves, with OpenAI's limits. Postgres keeps no NUL in a text."""


class RequestBody(BaseModel):
    """Base of all bodies: no type is guessed from another, null in an optional field is the same as no field, and an
    unknown field has no effect."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, use_attribute_docstrings=True)

    _required: ClassVar[frozenset[str]] = frozenset()
    _is_long: bool = PrivateAttr(default=False)
    _ignored: Ignored = PrivateAttr(default_factory=Ignored)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls._required = frozenset(name for name, field in cls.model_fields.items() if field.is_required())

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """With null among what an optional field may be."""
        schema = handler(core_schema)
        described = handler.resolve_ref_schema(schema)
        for name, field in described.get("properties", {}).items():
            if name not in described.get("required", ()):
                described["properties"][name] = _or_null(field)
        return schema

    @property
    def is_long(self) -> bool:
        """Whether what is done with it should be done in a thread."""
        return self._is_long

    @property
    def ignored(self) -> Ignored:
        """Fields without effect: of a whole body, those that are unknown. Steps that find others add them."""
        return self._ignored

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, body: Any) -> Any:
        if not isinstance(body, dict) or not any(value is None for value in body.values()):
            return body
        return {key: value for key, value in body.items() if value is not None or key in cls._required}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of an optional field, its annotations outside."""
    told = {key: value for key, value in schema.items() if key in ANNOTATIONS}
    form = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
    branches = form["anyOf"] if form.keys() == {"anyOf"} else [form]
    if NULL in branches or all(key.startswith("x-") for key in form):  # of any form
        return schema
    return {"anyOf": [*branches, NULL], **told}


class StrictBody(RequestBody):
    """Base of what only clients of this server write, and of what shapes a training: an unknown field is refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_is_enough(cls, body: Any) -> Any:
        if not isinstance(body, dict) or len(body) <= len(cls.model_fields):
            return body
        unknown = (key for key, value in body.items() if value is not None and key not in cls.model_fields)
        return {key: body[key] for key in (*cls.model_fields, *islice(unknown, 1)) if key in body}


@dataclass(frozen=True, slots=True)
class JsonBody(Generic[Model]):
    """Reads the request's body as `model`."""

    model: type[Model]

    async def __call__(self, request: Request) -> Model:
        http = find_part(request, HttpSettings)
        data = await read_body(request, http.max_body_bytes)
        pool = find_part(request, Pools).text
        body = await pool.run_long(len(data) > LONG, parse_json, self.model, data, refuse_unknown=http.refuse_unknown)
        request.state.ignored.add(*body.ignored)
        return body


def json_body(model: type[RequestBody]) -> Any:
    """A dependency that gives the request's body as `model`: `body: Annotated[ChatRequest, json_body(ChatRequest)]`."""
    return Depends(JsonBody(model))


async def read_body(request: Request, limit: int) -> bytes:
    """The body as it was sent; BodyTooLarge where more than `limit` bytes are announced or come."""
    _check_content_type(request)
    check_encoding(request)
    stream = request.stream()
    await check_announced(request, stream, limit)
    body = bytearray()
    async for chunk in stream:
        body += chunk
        if len(body) > limit:
            await linger(stream)
            raise _too_large(limit)
    return bytes(body)


async def check_announced(request: Request, stream: AsyncIterator[bytes], limit: int) -> None:
    """Raise BodyTooLarge where more than `limit` bytes are announced."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        if request.headers.get("expect", "").lower() != "100-continue":  # else the client waits for our word
            await linger(stream)
        raise _too_large(limit)


async def linger(stream: AsyncIterator[bytes]) -> None:
    """Let the rest of a body that is refused come, for a while: a client that finds the connection closed while it
    still sends may not get to see why."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            async for _ in stream:
                pass


def parse_json(model: type[Model], data: bytes, *, refuse_unknown: bool = False) -> Model:
    return validate(model, load_object(data), refuse_unknown=refuse_unknown, long=len(data) > LONG)


def parse_object(model: type[Model], body: dict[str, Any], *, refuse_unknown: bool = False) -> Model:
    """The same for what has been parsed as a part of something else."""
    check_depth(body)
    return validate(model, body, refuse_unknown=refuse_unknown, long=True)


def validate(model: type[Model], body: dict[str, Any], *, refuse_unknown: bool, long: bool = False) -> Model:
    """`refuse_unknown` refuses fields that are not the model's, too. Raises InvalidRequest."""
    unknown = [key for key, value in body.items() if value is not None and key not in model.model_fields]
    if unknown and (refuse_unknown or issubclass(model, StrictBody)):
        raise unknown_parameter(unknown[0])
    try:
        valid = _read(model, body)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise to_invalid_request(errors, body, ignored=unknown) from None
    valid._is_long = long
    valid.ignored.add(*unknown)
    return valid


def _read(model: type[Model], body: dict[str, Any]) -> Model:
    for _ in range(TRIES):
        try:
            return model.model_validate(body)
        except ValidationError as error:
            whole = with_integers(body, error.errors(include_url=False))
            if whole is body:
                raise
            body = whole
    return model.model_validate(body)


def _check_content_type(request: Request) -> None:
    """A page of another origin can have a browser send any other type, or none, without asking for leave."""
    given = request.headers.get("content-type")
    if given is None or not JSON_TYPES.fullmatch(given.partition(";")[0].strip()):
        told = "" if given is None else f", not {given[:60]!r}"
        raise InvalidRequest(
            f"The request needs the header Content-Type: application/json{told}.", code="unsupported_content_type"
        )


def check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "").strip()
    if encoding.lower() not in ("", "identity"):
        raise InvalidRequest(f"The content encoding {encoding[:60]!r} is not supported.")


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request's body is larger than {limit / MIB:.3g} MiB.")


def load_object(data: bytes) -> dict[str, Any]:
    """Parse an object within limits of what it may hold. Raises InvalidRequest."""
    check_counts(data)
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        reason = "it is empty" if not data else f"{error.msg}, line {error.lineno}, column {error.colno}"
        raise InvalidRequest(f"The body is not valid JSON: {reason}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        check_depth(body)
    return body


def check_counts(data: bytes) -> None:
    """Refuse what would take long to parse, before it is parsed."""
    counts = Counter({sign: data.count(sign) for sign in LIMITS})
    if all(counts[sign] <= most for sign, (most, _) in LIMITS.items()):
        return
    counts.clear()
    for found in SIGNS.finditer(data):  # without what stands in texts
        sign = data[found.start() : found.start() + 1]
        if sign == b'"':
            continue
        counts[sign] += 1
        most, what = LIMITS[sign]
        if counts[sign] > most:
            raise InvalidRequest(f"The body has more than {most} {what}.")


def check_depth(body: dict[str, Any]) -> None:
    """Refuse what is nested so deep that whatever reads or writes it may fail. Raises InvalidRequest."""
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise InvalidRequest(f"The body is nested deeper than {MAX_DEPTH} levels.")
