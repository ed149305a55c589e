"""Routes for those who run the server: /health, which SageMaker asks for as /ping, /ready, /version, /metrics, and the
engine's sleep."""

import asyncio
import contextlib
from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from engines.errors import EngineUnavailable, TuneserveError
from engines.types import EngineState
from server import __version__
from server.http.errors import error_response
from server.inference.inference import InferenceDep
from server.jobs.jobs import JobsDep
from server.model.served import ModelDep
from server.tasks import TasksDep

router = APIRouter()

LOOK_SECONDS = 2.0
"""Seconds that Prometheus waits for the database."""


@router.post("/ping", name="ping_post", response_model=None)
@router.get("/ping", name="ping", response_model=None)
@router.get("/health", response_model=None)
async def health(request: Request, tasks: TasksDep, inference: InferenceDep) -> Response | dict[str, str]:
    """The process is up, and what dies in it is started again; else 503: only a new process helps."""
    if dead := tasks.dead():
        error = EngineUnavailable(f"Tasks of the server have ended for good: {', '.join(dead)}.", code="tasks_dead")
        return error_response(error, request.scope)
    try:
        inference.lifecycle.check_alive()
    except EngineUnavailable as error:
        return error_response(error, request.scope)
    return {"status": "ok"}


@router.get("/ready", response_model=None)
async def ready(request: Request, model: ModelDep, inference: InferenceDep) -> Response | dict[str, str]:
    """Requests can be answered; else 503. To ask is no request that was turned away, so none is counted."""
    try:
        inference.lifecycle.check_ready()
    except EngineUnavailable as error:
        return error_response(error, request.scope)
    return {"status": "ready", "model": model.name}


@router.get("/version")
async def get_version() -> dict[str, str]:
    return {"version": __version__}


@router.post("/sleep")
async def sleep(inference: InferenceDep, level: Literal["1"] = "1", mode: Literal["wait"] = "wait") -> dict[str, bool]:
    """Take no more requests, wait for those that run, and give up the GPU's memory until `/wake_up`.

    As vLLM's route; of its levels the one that keeps the weights, in the host's memory, and of its modes the one that
    ends no request.
    """
    await inference.engine.sleep()
    return {"is_sleeping": True}


@router.post("/wake_up")
async def wake_up(inference: InferenceDep) -> dict[str, bool]:
    """Return once requests can be answered again."""
    await inference.engine.wake_up()
    return {"is_sleeping": False}


@router.get("/is_sleeping")
async def is_sleeping(inference: InferenceDep) -> dict[str, bool]:
    return {"is_sleeping": inference.engine.health().state is EngineState.SLEEPING}


@router.get("/metrics", response_class=Response)
async def metrics(inference: InferenceDep, jobs: JobsDep) -> Response:
    with contextlib.suppress(TuneserveError, TimeoutError):  # the last counts stand while the database is away
        async with asyncio.timeout(LOOK_SECONDS):
            await jobs.look()
    return Response(inference.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
