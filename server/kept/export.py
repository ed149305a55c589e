"""Kept chat completions become a file: a conversation in each line, as fine-tuning takes it, or a row of an eval."""

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
from training.rewards.graders.grading import sample_of

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
    async with files.storing(_lines(kept, found, body.purpose)) as content:
        if not content.stored.bytes:
            raise InvalidRequest("No chat completion is kept that matches and was not cut short.", code="empty_file")
        file = content.as_file(body.purpose, body.filename, owner=access.owner, expires_after=None)
        await files.keep_within_quota(file)
    return file


async def _lines(
    kept: KeptCompletions, found: Sequence[tuple[int, int]], purpose: Literal["fine-tune", "evals"]
) -> AsyncIterator[bytes]:
    line_of = _sample if purpose == "fine-tune" else _row
    async for completion in kept.read(found):
        yield b"".join(orjson.dumps(line_of(completion, each)) + b"\n" for each in conversations_of(completion))


def conversations_of(completion: KeptCompletion) -> Iterator[list[dict[str, Any]]]:
    """One for each of its answers that says something and was not cut short, which is the last message."""
    for choice in completion.answer["choices"]:
        message = choice["message"]
        if choice["finish_reason"] in WHOLE and any(message.get(name) for name in ("content", *CALLS)):
            yield _conversation(completion.asked, message)


def _sample(completion: KeptCompletion, conversation: list[dict[str, Any]]) -> dict[str, Any]:
    """As fine-tuning takes it."""
    tools = {name: given for name in ("tools", "functions") if (given := completion.asked[name])}
    return {"messages": conversation, **tools}


def _row(completion: KeptCompletion, conversation: list[dict[str, Any]]) -> dict[str, Any]:
    """As evals take it: the same as of the source `stored_completions`."""
    *asked, answer = conversation
    sample = sample_of(answer.get("content") or "", calls=answer.get("tool_calls") or ())
    item = {"input": asked, "output_text": sample["output_text"], "metadata": completion.metadata}
    return {"item": item, "sample": {**sample, "model": completion.answer["model"]}}


def _conversation(asked: dict[str, Any], message: dict[str, Any]) -> list[dict[str, Any]]:
    """One that continued the final message is one message with it."""
    said = [_complete(message) for message in asked["messages"]]
    answer = {name: value for name in LEARNED if (value := message.get(name)) is not None}
    if not asked["continue_final_message"]:
        return [*said, answer]
    *before, begun = said
    text = "" if asked["echo"] or not isinstance(begun["content"], str) else begun["content"]
    return [*before, answer | {"content": text + (answer.get("content") or "")}]


def _complete(message: dict[str, Any]) -> dict[str, Any]:
    """An assistant may have said nothing, which requests may leave out and data may not."""
    return message if any(name in message for name in ("content", *CALLS)) else {**message, "content": ""}
