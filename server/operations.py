"""Routes for those who run the server: /health, /ready, /version, /metrics."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server import __version__
from server.deps import AnyServing, ReadyServing

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is up."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(serving: ReadyServing) -> dict[str, str]:
    """Requests can be answered; else 503."""
    return {"status": "ready", "model": serving.model_name}


@router.get("/version")
async def get_version() -> dict[str, str]:
    return {"version": __version__}


@router.get("/metrics", response_class=Response)
async def metrics(serving: AnyServing) -> Response:
    return Response(serving.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
