"""The items of a response's input, as they arrive: messages, calls with their outputs, reasoning, and references.

Items come back as other servers, SDKs and agents have kept them: fields that are not named here have no effect.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from server.http.body import Items, RequestBody
from server.http.field_limits import MAX_JSON, GivenName, Name, Text
from server.openai.schema import MAX_MESSAGES, few_values

PARTS = ("input_text", "output_text", "refusal")
ITEMS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


# --- parts of content


class TextPart(RequestBody):
    type: Literal["input_text", "output_text"]
    text: Text


class RefusalPart(RequestBody):
    type: Literal["refusal"]
    refusal: Text


def _known_part(value: Any) -> Any:
    if isinstance(value, Mapping) and (kind := value.get("type")) not in PARTS:
        if isinstance(kind, str) and kind.startswith("input_"):
            raise ValueError(f"a part of type {kind[:60]!r} is not supported: this model reads text only")
        raise ValueError(f"Expected a part of type {', '.join(map(repr, PARTS))}, got {kind!r:.60}")
    return value


Part = Annotated[Annotated[TextPart | RefusalPart, Field(discriminator="type")], BeforeValidator(_known_part)]
Content = Text | Annotated[Items[Part], Field(max_length=MAX_MESSAGES)]


# --- items


Id = Annotated[Name, Field(pattern=r"^[^\x00]*$")]
"""Postgres keeps no NUL in a text."""


class Message(RequestBody):
    type: Literal["message"] = "message"
    id: Id | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class Call(RequestBody):
    type: Literal["function_call"]
    id: Id | None = None
    call_id: Name
    name: GivenName
    arguments: Annotated[str, Field(max_length=MAX_JSON), AfterValidator(few_values)]


class CallOutput(RequestBody):
    type: Literal["function_call_output"]
    id: Id | None = None
    call_id: Name
    output: Content


class PlainText(RequestBody):
    text: Text


Texts = Annotated[Items[PlainText], Field(max_length=MAX_MESSAGES)]


class Reasoning(RequestBody):
    type: Literal["reasoning"]
    id: Id | None = None
    summary: Texts = Field(default_factory=list)
    content: Texts | None = None
    encrypted_content: Text | None = None


class Reference(RequestBody):
    type: Literal["item_reference"] = "item_reference"
    id: Name


def _kind(value: Any) -> str | None:
    """The type of an item; the two that may leave it out are told by what they have."""
    if not isinstance(value, Mapping):
        return getattr(value, "type", None)
    kind = value.get("type")
    return kind if kind is not None else "message" if "role" in value else "item_reference" if "id" in value else None


def _known_item(value: Any) -> Any:
    if isinstance(value, Mapping) and (kind := _kind(value)) not in ITEMS:
        raise ValueError(f"Expected an item of type {', '.join(map(repr, ITEMS))}, got {kind!r:.60}")
    return value


Item = Annotated[
    Annotated[
        Annotated[Message, Tag("message")]
        | Annotated[Call, Tag("function_call")]
        | Annotated[CallOutput, Tag("function_call_output")]
        | Annotated[Reasoning, Tag("reasoning")]
        | Annotated[Reference, Tag("item_reference")],
        Discriminator(_kind),
    ],
    BeforeValidator(_known_item),
]
Input = Text | Annotated[Items[Item], Field(max_length=MAX_MESSAGES)]
"""A text is a message of the user."""
