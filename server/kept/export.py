"""Kept chat completions become a file: a conversation in each line, as fine-tuning takes it."""

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field

from engines.errors import InvalidRequest
from server.files.files import FileObject, Files, Purpose
from server.http.body import Metadata, StrictBody
from server.http.field_limits import Name
from server.kept.completions import Filter, KeptCompletion, KeptCompletions
from server.store.access import Access

INT64 = 2**63
CALLS = ("tool_calls", "function_call")
WHOLE = ("stop", "tool_calls", "function_call")
"""How an answer ends that was not cut short."""
LEARNED = ("role", "content", *CALLS, "reasoning_content")
"""What a line says of an answer."""


class ExportBody(StrictBody):
    """Which completions, named as in OpenAI's `stored_completions`, and what the file is for."""

    purpose: Literal["fine-tune", "evals"]
    model: Name | None = None
    metadata: Metadata | None = None
    created_after: int | None = Field(None, ge=0, lt=INT64)
    created_before: int | None = Field(None, ge=0, lt=INT64)
    limit: int | None = Field(None, ge=1, lt=INT64)
    """The newest so many. All of them unless given."""
    filename: Annotated[Name, Field(pattern=r"^[^\x00]+\.jsonl$")] = "completions.jsonl"


async def export(
    body: ExportBody, kept: KeptCompletions, files: Files, access: Access, purposes: Collection[Purpose]
) -> FileObject:
    """A new file of the caller's. Raises InvalidRequest where it would be empty or is not for this caller,
    QuotaExceeded, StorageFull."""
    if body.purpose not in purposes:
        raise InvalidRequest(f"This API key makes no files for {body.purpose!r}.", param="purpose")
    await files.check_quota(access.owner)
    wanted = Filter(
        model=body.model,
        metadata=body.metadata,
        created_after=body.created_after,
        created_before=body.created_before,
    )
    found = await kept.find(wanted, access, limit=body.limit)
    async with files.storing(_lines(kept, found)) as content:
        if not content.stored.bytes:
            raise InvalidRequest("No chat completion is kept that matches and was not cut short.", code="empty_file")
        file = content.as_file(body.purpose, body.filename, owner=access.owner, expires_after=None)
        await files.keep_within_quota(file)
    return file


async def _lines(kept: KeptCompletions, found: Sequence[tuple[int, int]]) -> AsyncIterator[bytes]:
    async for completion in kept.read(found):
        yield b"".join(lines_of(completion))


def lines_of(completion: KeptCompletion) -> Iterator[bytes]:
    """A line for each of its answers that says something and was not cut short."""
    tools = {name: given for name in ("tools", "functions") if (given := completion.asked[name])}
    for choice in completion.answer["choices"]:
        message = choice["message"]
        if choice["finish_reason"] in WHOLE and any(message.get(name) for name in ("content", *CALLS)):
            yield orjson.dumps({"messages": _conversation(completion.asked, message), **tools}) + b"\n"


def _conversation(asked: dict[str, Any], message: dict[str, Any]) -> list[dict[str, Any]]:
    """One that continued the final message is one message with it."""
    answer = {name: value for name in LEARNED if (value := message.get(name)) is not None}
    if not asked["continue_final_message"]:
        return [*asked["messages"], answer]
    *before, begun = asked["messages"]
    text = "" if asked["echo"] or not isinstance(begun["content"], str) else begun["content"]
    return [*before, answer | {"content": text + (answer.get("content") or "")}]
