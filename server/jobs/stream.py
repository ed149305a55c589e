"""A job's events as server-sent events: those that were told, then each as it comes, until the job has ended or the
server stops.

The id of an event is its number in the table, so that a client that comes back goes on where it was.
"""

import asyncio
from collections.abc import AsyncIterator

import orjson
from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from engines.errors import TuneserveError
from server.jobs.job import Job
from server.jobs.jobs import Jobs
from server.store.access import Access

LOOK_SECONDS = 0.5
"""Seconds between two looks for new events."""
MOST_LOOKS = 50
"""Looks a second of all streams together: where there are many, each looks less often."""
PAGE = 500
"""Most events read at a time."""
HEADERS = {"x-accel-buffering": "no"}
NO_CONTENT = 204
"""Status by which a client of server-sent events knows not to come back."""


async def stream_job_events(jobs: Jobs, job: Job, access: Access, after: int, *, keep_alive: float) -> Response:
    if after and job.ended and not await jobs.store.events(job, after=after, limit=1):
        return Response(status_code=NO_CONTENT)
    return EventSourceResponse(_events(jobs, job, access, after), ping=keep_alive, headers=HEADERS)


async def _events(jobs: Jobs, job: Job, access: Access, after: int) -> AsyncIterator[ServerSentEvent]:
    while True:
        try:
            job = await jobs.store.get(job.id, access)  # before the events, or the last might be missed
            events = await jobs.store.events(job, after=after, limit=PAGE)
        except TuneserveError:  # it is deleted, or the database is away: a client that comes back is told so
            return
        for each in events:
            after = each.number
            data = {"id": each.id, "attempt": each.attempt, **each.event.model_dump(mode="json")}
            yield ServerSentEvent(orjson.dumps(data).decode(), id=str(after), event=each.event.type)
        if not events:
            if job.ended or jobs.stopping:
                return
            await _pause(jobs)


async def _pause(jobs: Jobs) -> None:
    jobs.streams += 1
    try:
        await asyncio.sleep(max(LOOK_SECONDS, jobs.streams / MOST_LOOKS))
    finally:
        jobs.streams -= 1
