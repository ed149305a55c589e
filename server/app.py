"""The HTTP app: routes, error shape, keys, request ids, and what starts and stops with it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from engines.errors import TuneserveError
from engines.params.deploy import DeployParams
from server import operations
from server.adapters import routes as adapter_routes
from server.batches import routes as batch_routes
from server.batches.service import Batches
from server.deps import Parts
from server.files import routes as file_routes
from server.files.files import Files
from server.fine_tuning import routes as fine_tuning_routes
from server.http.auth import Auth
from server.http.description import DescribedApp
from server.http.errors import add_error_handlers
from server.http.keys import Keys
from server.http.middleware import RequestContext
from server.inference.inference import Inference
from server.jobs import routes as job_routes
from server.jobs.jobs import Jobs
from server.metrics.throughput import log_throughput
from server.openai import chat, completions, embeddings, models, tokenization
from server.store.database import Database

ROUTERS = (
    operations.router,
    chat.router,
    completions.router,
    models.router,
    embeddings.router,
    tokenization.router,
    adapter_routes.router,
    file_routes.router,
    batch_routes.router,
    fine_tuning_routes.router,
    job_routes.router,
)


def create_app(parts: Parts) -> FastAPI:
    """The server made of `parts`, whose engine starts behind it and stops with it."""
    inference, params = parts[Inference], parts[DeployParams]

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work) for work in await _open_store(parts)]
        tasks.append(asyncio.create_task(inference.lifecycle.start_engine()))
        if params.log_interval > 0:
            throughput = log_throughput(inference.engine, inference.metrics, params.log_interval)
            tasks.append(asyncio.create_task(throughput))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await parts[Jobs].stop(params.shutdown_timeout)
            await inference.engine.stop()
            await inference.adapters.close()
            await parts[Database].close()

    app = DescribedApp(lifespan)
    add_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    _add_middleware(app, parts)
    return app


async def _open_store(parts: Parts) -> list[Coroutine[Any, Any, None]]:
    """Open the database and what is kept in it; return what is to run as long as the server."""
    database, files, batches = parts[Database], parts[Files], parts[Batches]
    try:
        await database.open()
        if not database.is_open:
            return []
        await files.open()
        await batches.open()
        await parts[Jobs].open()
    except (TuneserveError, OSError) as error:
        parts[Inference].lifecycle.fail(error)
        return []
    return [files.delete_expired_for_ever(), batches.run_for_ever()]


def _add_middleware(app: FastAPI, parts: Parts) -> None:
    """From the innermost to the outermost."""
    params = parts[DeployParams]
    app.add_middleware(Auth, keys=parts[Keys], metrics_auth=params.metrics_auth)
    if params.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=params.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    in_flight = parts[Inference].lifecycle.in_flight
    app.add_middleware(RequestContext, parts=parts, in_flight=in_flight, verbose=params.verbose)
