"""What a field of a body may hold: each string, list and object has a limit, and `/openapi.json` says it.

Limits are OpenAI's where it has one. The others are far above what clients send, and low enough that a field at its
limit, in as many outputs as a request may have, holds up nobody else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

MAX_NAME = 256
"""Characters of a name or an id."""
MAX_PATH = 4096
"""Characters of a path, as Linux has it."""
MAX_TEXT = 1 << 22
"""Characters of a text for the model."""
MAX_TOKENS = 1 << 19
"""Token ids of one list."""
MAX_PROMPTS = 2048
"""Texts of one request, as OpenAI has it."""
MAX_JSON = 1 << 20
"""Bytes of a value that has no form of its own: tools, schemas, grammars."""
MAX_OPTIONS = 1 << 16
"""Bytes of a value without a form of its own that holds a few options."""
BYTES = "x-maxBytes"
"""Keyword of `/openapi.json` for what JSON Schema has none for."""

Name = Annotated[str, Field(max_length=MAX_NAME)]
GivenName = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
GivenPath = Annotated[str, Field(min_length=1, max_length=MAX_PATH)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]


@dataclass(frozen=True, slots=True)
class MaxBytes:
    """Limit of a value of any form: its bytes, written as JSON without blanks."""

    most: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "description": f"At most {self.most} bytes of JSON.", BYTES: self.most}

    def _check(self, value: Any) -> Any:
        if isinstance(value, Mapping | list | str) and (size := len(orjson.dumps(value))) > self.most:
            message = "JSON should have at most {most} bytes, this has {size}"
            raise PydanticCustomError("too_long", message, {"most": self.most, "size": size})
        return value


Json = Annotated[Any, MaxBytes(MAX_JSON)]
"""A value as it came: whoever reads it checks it."""
JsonObject = Annotated[dict[str, Any], MaxBytes(MAX_JSON)]
Options = Annotated[dict[str, Any], MaxBytes(MAX_OPTIONS)]
