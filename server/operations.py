"""Routes for those who run the server: /health, /ready, /version, /metrics, and the engine's sleep."""

from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from engines.errors import EngineUnavailable
from engines.types import EngineState
from server import __version__
from server.deps import AnyServing
from server.http.errors import error_response

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is up."""
    return {"status": "ok"}


@router.get("/ready", response_model=None)
async def ready(request: Request, serving: AnyServing) -> Response | dict[str, str]:
    """Requests can be answered; else 503. To ask is no request that was turned away, so none is counted."""
    try:
        serving.lifecycle.check_ready()
    except EngineUnavailable as error:
        return error_response(error, request.state.request_id)
    return {"status": "ready", "model": serving.model_name}


@router.get("/version")
async def get_version() -> dict[str, str]:
    return {"version": __version__}


@router.post("/sleep")
async def sleep(serving: AnyServing, level: Literal["1"] = "1", mode: Literal["wait"] = "wait") -> dict[str, bool]:
    """Take no more requests, wait for those that run, and give up the GPU's memory until `/wake_up`.

    As vLLM's route; of its levels the one that keeps the weights, in the host's memory, and of its modes the one that
    ends no request.
    """
    await serving.engine.sleep()
    return {"is_sleeping": True}


@router.post("/wake_up")
async def wake_up(serving: AnyServing) -> dict[str, bool]:
    """Return once requests can be answered again."""
    await serving.engine.wake_up()
    return {"is_sleeping": False}


@router.get("/is_sleeping")
async def is_sleeping(serving: AnyServing) -> dict[str, bool]:
    return {"is_sleeping": serving.engine.health().state is EngineState.SLEEPING}


@router.get("/metrics", response_class=Response)
async def metrics(serving: AnyServing) -> Response:
    await serving.jobs.look()
    return Response(serving.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
