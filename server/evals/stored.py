"""Kept answers become the rows of a run: what was asked is the item, what was answered the sample."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from engines.errors import NotFound
from server.evals.rows import MAX_ROWS
from server.evals.sampling import sample_of_answer
from server.evals.schema import StoredCompletions, StoredResponses
from server.files.storage import told_full
from server.kept.completions import Filter, KeptCompletion, KeptCompletions
from server.kept.responses import KeptResponse, KeptResponses
from server.store.access import Access

Stored = StoredCompletions | StoredResponses


@dataclass(frozen=True, slots=True)
class StoredAnswers:
    completions: KeptCompletions
    responses: KeptResponses

    async def write(self, source: Stored, metadata: Mapping[str, str], access: Access, path: Path) -> None:
        """Have the rows at `path`, whole or not at all. `metadata`: what the eval wants beside the source.

        Raises StorageFull, StoreUnavailable.
        """
        wanted = {**metadata, **(source.metadata or {})}
        if isinstance(source, StoredCompletions):
            rows = self._completions(source, wanted, access)
        else:
            rows = self._responses(source, wanted, access)
        partial = path.with_suffix(".partial")
        with told_full():
            file = await asyncio.to_thread(partial.open, "wb")
            try:
                async for row in rows:
                    await asyncio.to_thread(file.write, orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            finally:
                await asyncio.to_thread(file.close)
            partial.rename(path)

    async def _completions(
        self, source: StoredCompletions, metadata: Mapping[str, str], access: Access
    ) -> AsyncIterator[dict[str, Any]]:
        wanted = Filter(
            model=source.model,
            metadata=metadata,
            created_after=source.created_after,
            created_before=source.created_before,
        )
        found = await self.completions.find(wanted, access, limit=min(source.limit or MAX_ROWS, MAX_ROWS))
        async for each in self.completions.read(found):
            yield _row_of_completion(each)

    async def _responses(
        self, source: StoredResponses, metadata: Mapping[str, str], access: Access
    ) -> AsyncIterator[dict[str, Any]]:
        """The newest first."""
        room = min(source.limit or MAX_ROWS, MAX_ROWS)
        since, until = source.created_after, source.created_before
        async for each in self.responses.completed(access, created_after=since, created_before=until):
            if room and _matches(each.answer, source, metadata):
                yield await self._row_of_response(each, access)
                room -= 1
            if not room:
                return

    async def _row_of_response(self, kept: KeptResponse, access: Access) -> dict[str, Any]:
        answer = kept.answer
        before: list[dict[str, Any]] = []
        if isinstance(instructions := answer.get("instructions"), str) and instructions:
            before.append({"role": "system", "content": instructions})
        if (previous := answer.get("previous_response_id")) is not None:
            with contextlib.suppress(NotFound):  # where it is not kept any more, the row says what there is
                before += await self.responses.context(previous, access)
        return _row(answer, [*before, *kept.input], answer.get("metadata") or {})


def _row_of_completion(kept: KeptCompletion) -> dict[str, Any]:
    return _row(kept.answer, kept.asked["messages"], kept.metadata)


def _row(answer: Mapping[str, Any], asked: list[dict[str, Any]], metadata: Mapping[str, str]) -> dict[str, Any]:
    sample = {**sample_of_answer(answer), "model": answer["model"]}
    return {"item": {"input": asked, "output_text": sample["output_text"], "metadata": metadata}, "sample": sample}


def _matches(answer: Mapping[str, Any], source: StoredResponses, metadata: Mapping[str, str]) -> bool:
    """Whether a response is what the source asks for, but for its time."""
    tools = {tool.get("name") for tool in answer.get("tools") or ()}
    given = answer.get("metadata") or {}
    same = {
        "model": source.model,
        "temperature": source.temperature,
        "top_p": source.top_p,
    }
    return (
        all(value is None or answer.get(name) == value for name, value in same.items())
        and all(given.get(key) == value for key, value in metadata.items())
        and (source.instructions_search or "") in str(answer.get("instructions") or "")
        and source.reasoning_effort in (None, (answer.get("reasoning") or {}).get("effort"))
        and (source.users is None or answer.get("user") in source.users)
        and (source.tools is None or tools >= set(source.tools))
    )
