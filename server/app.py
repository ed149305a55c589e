"""The HTTP app: routes, error shape, keys, request ids, and what starts and stops with it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import cache, partial

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from engines.errors import TuneserveError
from engines.params.deploy import DeployParams
from server import operations
from server.adapters import routes as adapter_routes
from server.batches import routes as batch_routes
from server.batches.service import Batches
from server.deps import Parts
from server.evals import routes as eval_routes
from server.evals.service import Evals
from server.files import routes as file_routes
from server.files.files import Files
from server.fine_tuning import grader_routes
from server.fine_tuning import routes as fine_tuning_routes
from server.http.description import DescribedApp, described
from server.http.errors import add_error_handlers
from server.http.head import Head
from server.http.ignored import HEADER as IGNORED_FIELDS
from server.http.keys.auth import Auth, public_paths
from server.http.keys.keys import Keys
from server.http.middleware import RequestContext
from server.http.origins import Origins
from server.inference.inference import Inference
from server.inference.rate_limits import RATE_LIMIT_HEADERS
from server.jobs import routes as job_routes
from server.jobs.jobs import Jobs
from server.kept import completion_routes
from server.kept.kept import Kept
from server.messages import routes as message_routes
from server.metrics.keys import KeyMetrics
from server.metrics.throughput import log_throughput
from server.openai import chat, completions, embeddings, models, tokenization
from server.pooling import classify, rerank, score
from server.pools import Pools
from server.responses import conversations
from server.responses import routes as response_routes
from server.responses.again import Unfinished
from server.responses.background import Background
from server.store.database import Database
from server.tasks import Tasks
from server.uploads import routes as upload_routes

ROUTERS = (
    operations.router,
    chat.router,
    completion_routes.router,
    completions.router,
    message_routes.router,
    models.router,
    embeddings.router,
    classify.router,
    score.router,
    rerank.router,
    tokenization.router,
    response_routes.router,
    conversations.router,
    adapter_routes.router,
    file_routes.router,
    upload_routes.router,
    batch_routes.router,
    eval_routes.router,
    fine_tuning_routes.router,
    grader_routes.router,
    job_routes.router,
)


def create_app(parts: Parts) -> FastAPI:
    """The server made of `parts`, whose engine starts behind it and stops with it."""
    inference, params, tasks = parts[Inference], parts[DeployParams], parts[Tasks]

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await _open_store(parts)
        starting = asyncio.create_task(inference.lifecycle.start_engine())
        tasks.start("engine_watch", inference.lifecycle.watch_engine)
        if params.log_interval > 0:
            throughput = partial(log_throughput, inference.engine, inference.metrics, params.log_interval)
            tasks.start("throughput", throughput)
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await parts[Jobs].stop(params.shutdown_timeout)
            await parts[Background].close()
            await tasks.stop()
            await parts[Kept].writer.close()
            await inference.engine.stop()
            await inference.adapters.close()
            await parts[Database].close()
            parts[Pools].close()

    public = public_paths(metrics_auth=params.metrics_auth)
    app = DescribedApp(lifespan, params.root_path, public=public, keyed=bool(parts[Keys]))
    add_error_handlers(app)
    app.router.routes += _routes()
    _add_middleware(app, parts)
    return app


@cache
def _routes() -> list[BaseRoute]:
    return described(ROUTERS)


async def _open_store(parts: Parts) -> None:
    """Open the database and what is kept in it, and start what runs on it as long as the server."""
    database, files, batches, jobs = parts[Database], parts[Files], parts[Batches], parts[Jobs]
    try:
        await database.open()
        if not database.is_open:
            return
        await parts[Inference].fine_tuned.open()
        await files.open()
        await batches.open()
        await parts[Evals].open()
        await parts[Unfinished].begin_again()
        await jobs.open()
    except (TuneserveError, OSError) as error:
        parts[Inference].lifecycle.fail(error)
        return
    kept = parts[Kept]
    works = {
        "file_expiry": files.delete_expired_for_ever,
        "kept_writer": kept.writer.run,
        "kept_expiry": kept.delete_expired_for_ever,
        "batches": batches.run_for_ever,
        "evals": parts[Evals].run_for_ever,
        "jobs": jobs.run,
    }
    for name, work in works.items():
        parts[Tasks].start(name, work)


def _add_middleware(app: FastAPI, parts: Parts) -> None:
    """From the innermost to the outermost."""
    params = parts[DeployParams]
    count = parts[KeyMetrics]
    app.add_middleware(
        Auth,
        keys=parts[Keys],
        metrics_auth=params.metrics_auth,
        on_request=count.count_request,
        on_failure=count.count_failure,
    )
    app.add_middleware(Head)
    if params.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=params.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "request-id", "retry-after", IGNORED_FIELDS, *RATE_LIMIT_HEADERS],
        )
    app.add_middleware(
        Origins,
        keys=parts[Keys],
        address=params.host,
        allowed_origins=params.allowed_origins,
        allowed_hosts=params.allowed_hosts,
    )
    in_flight = parts[Inference].lifecycle.in_flight
    app.add_middleware(RequestContext, parts=parts, in_flight=in_flight, verbose=params.verbose)
