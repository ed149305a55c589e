"""Put the parts together: routes, error shape, keys, request ids, and the engine's start and stop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from engines.errors import TuneserveError
from server import operations
from server.adapters import routes as adapter_routes
from server.batches import routes as batch_routes
from server.batches.service import Batches
from server.deps import Serving
from server.files import routes as file_routes
from server.fine_tuning import routes as fine_tuning_routes
from server.fine_tuning.publish import Publisher
from server.http.auth import Auth, parse_keys
from server.http.description import DescribedApp
from server.http.errors import add_error_handlers
from server.http.middleware import RequestContext
from server.jobs import routes as job_routes
from server.metrics.throughput import log_throughput
from server.openai import chat, completions, embeddings, models, tokenization

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


def create_app(serving: Serving) -> FastAPI:
    """The server for `serving`, whose engine starts behind it and stops with it."""
    batches = Batches(serving)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work) for work in await _open_store(serving, batches)]
        tasks.append(asyncio.create_task(serving.lifecycle.start_engine()))
        if serving.params.log_interval > 0:
            tasks.append(asyncio.create_task(log_throughput(serving, serving.params.log_interval)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await serving.jobs.stop(serving.params.shutdown_timeout)
            await serving.engine.stop()
            await serving.registry.close()
            await serving.database.close()

    app = DescribedApp(lifespan)
    app.state.serving = serving
    app.state.batches = batches
    add_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    _add_middleware(app, serving)
    return app


async def _open_store(serving: Serving, batches: Batches) -> list[Coroutine[Any, Any, None]]:
    """Open the database and what is kept in it; return what is to run as long as the server."""
    try:
        await serving.database.open()
        if not serving.database.is_open:
            return []
        await serving.files.open()
        await batches.open()
        serving.jobs.hooks = _publisher(serving)
        await serving.jobs.open()
    except (TuneserveError, OSError) as error:
        serving.lifecycle.fail(error)
        return []
    return [serving.files.delete_expired_for_ever(), batches.run_for_ever()]


def _publisher(serving: Serving) -> Publisher:
    return Publisher(
        registry=serving.registry,
        check_ready=serving.lifecycle.check_ready,
        engine=serving.engine,
        jobs=serving.jobs,
        files=serving.files,
        served=serving.params,
        base_name=serving.model_name,
    )


def _add_middleware(app: FastAPI, serving: Serving) -> None:
    """From the innermost to the outermost."""
    params = serving.params
    app.add_middleware(Auth, keys=parse_keys(params.api_key or ()), metrics_auth=params.metrics_auth)
    if params.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=params.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(RequestContext, lifecycle=serving.lifecycle, verbose=params.verbose)
