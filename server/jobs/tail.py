"""Brings what a worker writes to events.jsonl into the database: each line once, whoever is killed when."""

import asyncio
from itertools import islice
from pathlib import Path

from server.jobs.job import Job
from server.jobs.store import JobStore
from training.folder import Event, JobFolder

LINES = 500
"""Most lines taken in by one transaction."""


class Tail:
    def __init__(self, store: JobStore, job: Job, folder: Path) -> None:
        self._store = store
        self._job = job
        self._folder = JobFolder(folder)
        self._offset: int | None = None

    async def read(self) -> list[Event]:
        """Take in every whole line that is new; return their events."""
        if self._offset is None:
            self._offset = await self._store.offset(self._job)
        taken: list[Event] = []
        while lines := await asyncio.to_thread(self._next_lines, self._offset):
            events, after = [event for event, _ in lines], lines[-1][1]
            await self._store.take_in(self._job, events, before=self._offset, after=after)
            self._offset = after
            taken += events
        return taken

    def _next_lines(self, offset: int) -> list[tuple[Event, int]]:
        return list(islice(self._folder.read_events(offset), LINES))
