"""The bodies of /v1/evals, in OpenAI's words."""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.http.body import Items, Metadata, RequestBody, StrictBody
from server.http.field_limits import JsonObject, MaxBytes, Name, Options
from training.params.graders import Grader, GraderMessages

INT64 = 2**63
MAX_CRITERIA = 32
MAX_INLINE = 1 << 20
"""Bytes of the rows that a request itself may bring: more are uploaded as a file."""


# ---- an eval


class CustomConfig(StrictBody):
    """Rows that runs bring, each an `item` of this form."""

    type: Literal["custom"]
    item_schema: Options
    """JSON Schema of an item."""
    include_sample_schema: bool = False
    """Whether the graders may refer to a `sample`, be it generated or brought."""


class LogsConfig(StrictBody):
    """Kept chat completions or responses."""

    type: Literal["logs", "stored_completions"]
    metadata: Metadata | None = None
    """Those alone that have all these pairs."""


Config = Annotated[CustomConfig | LogsConfig, Field(discriminator="type")]


class EvalBody(RequestBody):
    name: Name | None = None
    metadata: Metadata | None = None
    data_source_config: Config
    testing_criteria: Annotated[Items[Grader], Field(min_length=1, max_length=MAX_CRITERIA)]


class EvalChanges(RequestBody):
    name: Name | None = None
    metadata: Metadata | None = None


# ---- where the rows of a run are


class Row(RequestBody):
    item: dict[str, Any]
    sample: dict[str, Any] | None = None
    """An answer that is there already."""


class FileContent(StrictBody):
    type: Literal["file_content"]
    content: Annotated[Items[dict[str, Any]], Field(min_length=1), MaxBytes(MAX_INLINE)]
    """Each a `Row`."""


class FileId(StrictBody):
    type: Literal["file_id"]
    id: Name


class StoredCompletions(StrictBody):
    """Kept chat completions that match."""

    type: Literal["stored_completions"]
    model: Name | None = None
    metadata: Metadata | None = None
    created_after: int | None = Field(None, ge=0, lt=INT64)
    created_before: int | None = Field(None, ge=0, lt=INT64)
    limit: int | None = Field(None, ge=1, lt=INT64)
    """The newest so many."""


class StoredResponses(StrictBody):
    """Kept responses that match."""

    type: Literal["responses"]
    model: Name | None = None
    metadata: Metadata | None = None
    created_after: int | None = Field(None, ge=0, lt=INT64)
    created_before: int | None = Field(None, ge=0, lt=INT64)
    instructions_search: Name | None = None
    """A part of their instructions."""
    temperature: float | None = None
    top_p: float | None = None
    reasoning_effort: Name | None = None
    tools: Annotated[Items[Name], Field(max_length=128)] | None = None
    """Names of tools that they all offered."""
    users: Annotated[Items[Name], Field(max_length=128)] | None = None
    """Those of one of these users."""
    limit: int | None = Field(None, ge=1, lt=INT64)
    """The newest so many."""


# ---- what a model is asked


class Template(StrictBody):
    type: Literal["template"]
    template: GraderMessages
    """With `{{item.NAME}}` in its texts."""


class ItemReference(StrictBody):
    type: Literal["item_reference"]
    item_reference: Name
    """Where in an item the messages stand, such as `item.input`."""


InputMessages = Annotated[Template | ItemReference, Field(discriminator="type")]


# ---- a run


class Jsonl(StrictBody):
    """Rows with what is to be judged in them."""

    type: Literal["jsonl"]
    source: Annotated[FileContent | FileId, Field(discriminator="type")]


class Sampled(StrictBody):
    """Rows that a model is asked about; without one, stored answers as they are."""

    model: Name | None = None
    input_messages: InputMessages | None = None
    sampling_params: JsonObject | None = None
    """Fields of the request, in the words of evals."""


class Completions(Sampled):
    type: Literal["completions"]
    source: Annotated[FileContent | FileId | StoredCompletions, Field(discriminator="type")]


class Responses(Sampled):
    type: Literal["responses"]
    source: Annotated[FileContent | FileId | StoredResponses, Field(discriminator="type")]


DataSource = Annotated[Jsonl | Completions | Responses, Field(discriminator="type")]


class RunBody(RequestBody):
    name: Name | None = None
    metadata: Metadata | None = None
    data_source: DataSource
