"""The form that drawn answers are held to, as OpenAI's `response_format`."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from engines.params.about import About
from engines.params.base import JsonObject, Params
from engines.types import Structured
from training.params.refusal import first_problem


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class _Text(_Form):
    type: Literal["text"]


class _Object(_Form):
    type: Literal["json_object"]


class _Named(_Form):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class _Schema(_Form):
    type: Literal["json_schema"]
    json_schema: _Named


_FORM: TypeAdapter[_Text | _Object | _Schema] = TypeAdapter(
    Annotated[_Text | _Object | _Schema, Field(discriminator="type")], config=ConfigDict(defer_build=True)
)


def structured_of(response_format: Any) -> Structured | None:
    """The constraint on an answer; None where any text will do. Raises ValueError, which says where it is no format."""
    if response_format is None:
        return None
    try:
        form = _FORM.validate_python(response_format)
    except ValidationError as error:
        raise ValueError(first_problem(error, below=1)) from None  # below the type that tells the forms apart
    match form:
        case _Text():
            return None
        case _Object():
            return Structured(kind="json_object", value="")
        case _Schema(json_schema=named):
            return Structured(kind="json_schema", value=json.dumps(named.schema_), lenient=named.strict is not True)


def checked_format(response_format: Any) -> Any:
    """The same. Raises ValueError where it is no format."""
    structured_of(response_format)
    return response_format


class ResponseFormatParams(Params):
    """The form of answers. An addition to the reference's parameters."""

    response_format: Annotated[
        JsonObject | None,
        BeforeValidator(checked_format),
        About(text=True, not_in_fine_tuning="say it in method.reinforcement"),
    ] = None
    """What the answers that are drawn and judged are held to, as OpenAI's `response_format`: `{"type": "json_schema",
    "json_schema": {"name": "...", "schema": {...}, "strict": true}}`, or `{"type": "json_object"}`. Any text unless
    given."""
