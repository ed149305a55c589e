"""/v1/fine_tuning/jobs, as OpenAI has it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Request
from sqlalchemy import ColumnElement

from engines.errors import Conflict, InvalidRequest, NotFound
from server.fine_tuning.body import CreateFineTuningJob
from server.fine_tuning.create import CreatorDep
from server.fine_tuning.record import FineTuning
from server.fine_tuning.wire import checkpoint_to_wire, estimate_finish, event_to_wire, job_to_wire
from server.http.body import json_body
from server.http.keys.deps import AccessDep
from server.http.paging import Limit
from server.http.settings import PoolsDep
from server.jobs.job import Job, JobStatus
from server.jobs.jobs import Jobs, JobsDep
from server.jobs.store import CURVE
from server.jobs.table import CHECKPOINTS, JOBS
from server.store.access import Access

router = APIRouter(prefix="/v1/fine_tuning/jobs")

LATEST_STEPS = 20
MOST_METADATA = 16
"""Entries of `metadata` that a filter may name: as many as a job can have."""
ID = re.compile(r"ftjob-[A-Za-z0-9]+")


@router.post("")
async def create_fine_tuning_job(
    body: Annotated[CreateFineTuningJob, json_body(CreateFineTuningJob)],
    creator: CreatorDep,
    jobs: JobsDep,
    access: AccessDep,
) -> dict[str, Any]:
    return await _to_wire(jobs, await creator.create(body, access))


@router.get("")
async def list_fine_tuning_jobs(
    request: Request, jobs: JobsDep, access: AccessDep, after: str | None = None, limit: Limit = 20
) -> dict[str, Any]:
    where = [JOBS.c.fine_tuning.is_not(None), *_metadata_filter(request)]
    page, more = await jobs.store.page(access, *where, after=after, limit=limit)
    return {"object": "list", "data": [await _to_wire(jobs, job) for job in page], "has_more": more}


@router.get("/{fine_tuning_job_id}")
async def get_fine_tuning_job(fine_tuning_job_id: str, jobs: JobsDep, access: AccessDep) -> dict[str, Any]:
    return await _to_wire(jobs, await _get(jobs, fine_tuning_job_id, access))


@router.post("/{fine_tuning_job_id}/cancel")
async def cancel_fine_tuning_job(fine_tuning_job_id: str, jobs: JobsDep, access: AccessDep) -> dict[str, Any]:
    """What has ended already is a 400, as OpenAI has it."""
    await _get(jobs, fine_tuning_job_id, access)
    try:
        job = await jobs.cancel(fine_tuning_job_id, access)
    except Conflict as error:
        raise InvalidRequest(error.message, param="fine_tuning_job_id", code=error.code) from None
    return await _to_wire(jobs, job)


@router.post("/{fine_tuning_job_id}/pause")
async def pause_fine_tuning_job(fine_tuning_job_id: str, jobs: JobsDep, access: AccessDep) -> dict[str, Any]:
    await _get(jobs, fine_tuning_job_id, access)
    with _named_here():
        return await _to_wire(jobs, await jobs.pause(fine_tuning_job_id, access))


@router.post("/{fine_tuning_job_id}/resume")
async def resume_fine_tuning_job(fine_tuning_job_id: str, jobs: JobsDep, access: AccessDep) -> dict[str, Any]:
    await _get(jobs, fine_tuning_job_id, access)
    with _named_here():
        return await _to_wire(jobs, await jobs.resume(fine_tuning_job_id, access))


@router.get("/{fine_tuning_job_id}/events")
async def list_fine_tuning_events(
    fine_tuning_job_id: str, jobs: JobsDep, access: AccessDep, after: str | None = None, limit: Limit = 20
) -> dict[str, Any]:
    job = await _get(jobs, fine_tuning_job_id, access)
    events, more = await jobs.store.page_of_events(job, after=after, limit=limit)
    return {"object": "list", "data": [event_to_wire(event) for event in events], "has_more": more}


@router.get("/{fine_tuning_job_id}/checkpoints")
async def list_fine_tuning_job_checkpoints(
    fine_tuning_job_id: str,
    jobs: JobsDep,
    access: AccessDep,
    pools: PoolsDep,
    after: str | None = None,
    limit: Limit = 10,
) -> dict[str, Any]:
    """Those that answer already."""
    job = await _get(jobs, fine_tuning_job_id, access)
    store = jobs.store
    found, more = await store.page_of_checkpoints(job, CHECKPOINTS.c.announced, after=after, limit=limit)
    events = [event.event async for piece in store.all_events(job, types=CURVE) for event in piece]

    def write() -> list[dict[str, Any]]:
        return [checkpoint_to_wire(each, _record(job), job_id=job.id, events=events) for each in found]

    data = await pools.text.run(write)
    ids = [checkpoint["id"] for checkpoint in data]
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}


@contextmanager
def _named_here() -> Iterator[None]:
    """Have a conflict name the job as these routes do."""
    try:
        yield
    except Conflict as error:
        error.param = "fine_tuning_job_id"
        raise


async def _get(jobs: Jobs, id: str, access: Access) -> Job:
    """Raises NotFound; also for a job that was not made here."""
    missing = NotFound(f"There is no fine-tuning job {id[:100]!r}.", param="fine_tuning_job_id")
    if not ID.fullmatch(id):
        raise missing
    try:
        job = await jobs.store.get(id, access)
    except NotFound:
        raise missing from None
    if job.fine_tuning is None:
        raise missing
    return job


async def _to_wire(jobs: Jobs, job: Job) -> dict[str, Any]:
    estimated = None
    if job.status is JobStatus.RUNNING:
        latest, _ = await jobs.store.page_of_events(job, after=None, limit=LATEST_STEPS)
        estimated = estimate_finish(latest)
    return job_to_wire(job, _record(job), estimated_finish=estimated)


def _record(job: Job) -> FineTuning:
    return FineTuning.model_validate(job.fine_tuning)


def _metadata_filter(request: Request) -> list[ColumnElement[bool]]:
    """`metadata[key]=value`, several of them all at once; `metadata=null`: jobs that have none."""
    where: list[ColumnElement[bool]] = []
    for name, value in request.query_params.multi_items():
        if name == "metadata":
            if value != "null":
                message = "metadata: filter by metadata[KEY]=VALUE, or by metadata=null."
                raise InvalidRequest(message, param="metadata")
            where.append(JOBS.c.metadata.is_(None))
        elif name.startswith("metadata[") and name.endswith("]"):
            key = name.removeprefix("metadata[").removesuffix("]")
            if '"' in key or "\\" in key:  # a path in JSON, which the database takes for one, cannot say these
                raise InvalidRequest('metadata: keys with " or \\ cannot be looked for.', param="metadata")
            if "\x00" in key + value:
                raise InvalidRequest("metadata: no key or value has a NUL in it.", param="metadata")
            where.append(JOBS.c.metadata[key].as_string() == value)
    if len(where) > MOST_METADATA:
        raise InvalidRequest(f"metadata: at most {MOST_METADATA} values can be looked for.", param="metadata")
    return where
