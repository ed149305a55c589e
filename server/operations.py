"""Routes for those who run the server: /health, /ready, /version, /metrics."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from engines.errors import EngineUnavailable
from server import __version__
from server.deps import AnyServing
from server.errors import error_response

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


@router.get("/metrics", response_class=Response)
async def metrics(serving: AnyServing) -> Response:
    await serving.jobs.look()
    return Response(serving.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
