"""/v1/jobs: everything that the command line can run, beside the served model."""

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from engines.errors import InvalidRequest
from server.http.body import json_body
from server.http.description import STREAMED
from server.http.errors import InsufficientPermissions
from server.http.keys.deps import AccessDep
from server.http.paging import Limit
from server.http.settings import HttpDep, PoolsDep
from server.jobs.artifacts import find_artifact, list_artifacts
from server.jobs.job import Job, JobStatus
from server.jobs.jobs import JobsDep
from server.jobs.logs import read_log
from server.jobs.request import JobBody, JobType, parse
from server.jobs.sources import SourcesDep
from server.jobs.store import CURVE, JobEvent, message
from server.jobs.stream import stream_job_events
from server.jobs.table import JOBS
from server.store.pages import Order
from training.folder import Result

router = APIRouter(prefix="/v1/jobs")

EVENT_NUMBER = re.compile(r"[0-9]{1,18}")
MOST_ATTEMPTS = 1_000_000
LOG_BYTES = 64 << 10
MOST_LOG_BYTES = 1 << 20


@router.post("")
async def create_job(
    body: Annotated[JobBody, json_body(JobBody)],
    jobs: JobsDep,
    sources: SourcesDep,
    access: AccessDep,
    pools: PoolsDep,
) -> dict[str, Any]:
    if body.priority > 0 and not access.everything:
        text = f"'priority' is {body.priority}: only a key with the role admin may go before others (above 0)."
        raise InsufficientPermissions(text, param="priority")
    task = await pools.text.run_long(body.is_long, body.task)
    given = task.params.model_dump(mode="json", exclude_unset=True)
    async with jobs.making() as id:
        resolved = await sources.resolve(type(task.params), given, id, access)
        task = await pools.files.run(lambda: parse(body.type, resolved).completed())
        sources.check_grader(task.params)
        job = await jobs.create(
            id,
            task,
            access,
            message(f"Created the job {id}"),
            told=given,
            priority=body.priority,
            devices=body.devices,
            metadata=body.metadata,
        )
    return _to_wire(job)


@router.get("")
async def list_jobs(
    jobs: JobsDep,
    access: AccessDep,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "desc",
    status: JobStatus | None = None,
    type: JobType | None = None,
) -> dict[str, Any]:
    where = [column == value for column, value in ((JOBS.c.status, status), (JOBS.c.type, type)) if value is not None]
    page, more = await jobs.store.page(access, *where, after=after, limit=limit, order=order)
    return _page([_to_wire(job) for job in page], more)


@router.get("/{job_id}")
async def get_job(job_id: str, jobs: JobsDep, access: AccessDep) -> dict[str, Any]:
    return _to_wire(await jobs.store.get(job_id, access))


@router.delete("/{job_id}")
async def delete_job(job_id: str, jobs: JobsDep, access: AccessDep) -> dict[str, Any]:
    """Delete the job with all that it has made, but for a published model: that one is deleted as a model."""
    await jobs.delete(job_id, access)
    return {"id": job_id, "object": "job", "deleted": True}


@router.post("/{job_id}/cancel")
async def cancel_job(job_id: str, jobs: JobsDep, access: AccessDep) -> dict[str, Any]:
    return _to_wire(await jobs.cancel(job_id, access))


@router.post("/{job_id}/pause")
async def pause_job(job_id: str, jobs: JobsDep, access: AccessDep) -> dict[str, Any]:
    return _to_wire(await jobs.pause(job_id, access))


@router.post("/{job_id}/resume")
async def resume_job(job_id: str, jobs: JobsDep, access: AccessDep) -> dict[str, Any]:
    return _to_wire(await jobs.resume(job_id, access))


@router.post("/{job_id}/retry")
async def retry_job(job_id: str, jobs: JobsDep, access: AccessDep) -> dict[str, Any]:
    """One that failed or was cancelled goes on from its last checkpoint."""
    return _to_wire(await jobs.retry(job_id, access))


# ---- what it reports


@router.get("/{job_id}/events", response_model=None, responses=STREAMED)
async def get_job_events(
    request: Request,
    job_id: str,
    jobs: JobsDep,
    access: AccessDep,
    http: HttpDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    order: Order = "asc",
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response | dict[str, Any]:
    """A page of events; or, for `Accept: text/event-stream`, all of them as they come, until the job has ended."""
    job = await jobs.store.get(job_id, access)
    if "text/event-stream" in request.headers.get("accept", ""):
        if last_event_id is not None and not EVENT_NUMBER.fullmatch(last_event_id):
            raise InvalidRequest("Last-Event-ID is no id of an event of this stream.", param="Last-Event-ID")
        return await stream_job_events(jobs, job, access, int(last_event_id or 0), keep_alive=http.keep_alive_seconds)
    events, more = await jobs.store.page_of_events(job, after=after, limit=limit, order=order)
    return _page([event_to_wire(event) for event in events], more)


@router.get("/{job_id}/metrics", response_class=StreamingResponse)
async def get_job_metrics(job_id: str, jobs: JobsDep, access: AccessDep) -> StreamingResponse:
    """The loss curve: what was logged of each step and evaluation."""
    job = await jobs.store.get(job_id, access)
    pieces = jobs.store.all_events(job, types=CURVE)
    return StreamingResponse(_write_list(pieces), media_type="application/json")


@router.get("/{job_id}/logs")
async def get_job_logs(
    job_id: str,
    jobs: JobsDep,
    access: AccessDep,
    pools: PoolsDep,
    attempt: Annotated[int | None, Query(ge=0, le=MOST_ATTEMPTS)] = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_LOG_BYTES)] = LOG_BYTES,
) -> dict[str, Any]:
    """What the worker of an attempt, the last unless given, has written; attempt 0 is the look at the data."""
    job = await jobs.store.get(job_id, access)
    number = job.attempt if attempt is None else attempt
    folders = jobs.folders
    folder = folders.attempt(job.id, number) if number else folders.validation(job.id)
    page = await pools.files.run(read_log, folder, offset=offset, limit=limit)
    return {"object": "job.logs", "attempt": number, **page}


@router.get("/{job_id}/artifacts")
async def get_job_artifacts(job_id: str, jobs: JobsDep, access: AccessDep, pools: PoolsDep) -> dict[str, Any]:
    """The files that it has made; `result` is the one or the folder that came out, where it succeeded."""
    job = await jobs.store.get(job_id, access)
    files = await pools.files.run(list_artifacts, jobs.folders.job(job.id))
    result = job.job_result()
    artifact = None if result is None or result.artifact is None else f"{job.attempt}/{result.artifact}"
    return {"object": "list", "data": files, "result": artifact}


@router.get("/{job_id}/artifacts/{path:path}", response_class=FileResponse)
async def get_job_artifact(job_id: str, path: str, jobs: JobsDep, access: AccessDep, pools: PoolsDep) -> FileResponse:
    job = await jobs.store.get(job_id, access)
    file = await pools.files.run(find_artifact, jobs.folders.job(job.id), path)
    return FileResponse(file, filename=file.name, media_type="application/octet-stream")


def event_to_wire(event: JobEvent) -> dict[str, Any]:
    return {"id": event.id, "object": "job.event", "attempt": event.attempt, **event.event.model_dump(mode="json")}


async def _write_list(pieces: AsyncIterator[list[JobEvent]]) -> AsyncIterator[bytes]:
    """A list of what the events tell, as JSON."""
    separator = b""
    yield b'{"object":"list","data":['
    async for piece in pieces:
        yield separator + orjson.dumps([each.event.model_dump(mode="json") for each in piece])[1:-1]
        separator = b","
    yield b"]}"


def _page(data: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, **ends, "has_more": more}


def _to_wire(job: Job) -> dict[str, Any]:
    result = job.job_result()
    return {
        "id": job.id,
        "object": "job",
        "type": job.type,
        "status": job.status,
        "parameters": job.told,
        "priority": job.priority,
        "devices": job.devices,
        "metadata": job.metadata,
        "owner": job.owner,
        "attempt": job.attempt,
        "fine_tuned_model": job.fine_tuned_model,
        "created_at": int(job.created_at),
        "queued_at": _seconds(job.queued_at),
        "started_at": _seconds(job.started_at),
        "finished_at": _seconds(job.finished_at),
        "error": job.error,
        "result": None if result is None else _told_result(result),
    }


def _told_result(result: Result) -> dict[str, Any]:
    told = {"kind", "task_type", "final_step", "trained_tokens", "metrics"}
    return result.model_dump(mode="json", include=told if result.memory is None else told | {"memory"})


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
