"""A job's events as server-sent events: those that were told, then each as it comes, until the job has ended.

The id of an event is its number in the table, so that a client that comes back goes on where it was.
"""

import asyncio
from collections.abc import AsyncIterator

import orjson
from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from engines.errors import NotFound
from server.jobs.store import JobStore

LOOK_SECONDS = 0.5
PAGE = 500
HEADERS = {"x-accel-buffering": "no"}
NO_CONTENT = 204
"""By which a client of server-sent events knows not to come back."""


async def stream_job_events(store: JobStore, job_id: str, after: int, *, keep_alive: float) -> Response:
    if after and (await store.get(job_id)).ended and not await store.events(job_id, after=after, limit=1):
        return Response(status_code=NO_CONTENT)
    return EventSourceResponse(_events(store, job_id, after), ping=keep_alive, headers=HEADERS)


async def _events(store: JobStore, job_id: str, after: int) -> AsyncIterator[ServerSentEvent]:
    while True:
        try:
            ended = (await store.get(job_id)).ended  # before the events, or the last might be missed
        except NotFound:
            return
        events = await store.events(job_id, after=after, limit=PAGE)
        for each in events:
            after = each.number
            data = {"id": each.id, "attempt": each.attempt, **each.event.model_dump(mode="json")}
            yield ServerSentEvent(orjson.dumps(data).decode(), id=str(after), event=each.event.type)
        if not events:
            if ended:
                return
            await asyncio.sleep(LOOK_SECONDS)
