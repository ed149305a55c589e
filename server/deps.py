"""What the routes share: made once, kept in `app.state`, handed out as FastAPI dependencies."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request

from engines.adapters.registry import AdapterRegistry, Lease
from engines.adapters.state_folder import state_folder
from engines.engine import Engine
from engines.params.deploy import DeployParams
from engines.text.prompt import PromptRenderer, plain_template, read_chat_template
from engines.text.vocabulary import Vocabulary
from server.adapters.at_start import load_adapters
from server.adapters.roots import AdapterRoots
from server.files.files import Files
from server.http.lifecycle import Lifecycle
from server.jobs.jobs import Jobs
from server.metrics.metrics import Metrics
from server.model.defaults import SamplingDefaults, sampling_defaults
from server.model.output import OutputFormat, find_output_format
from server.store.database import Database

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One served model and what surrounds it."""

    engine: Engine
    tokenizer: "PreTrainedTokenizerBase"
    renderer: PromptRenderer
    vocabulary: Vocabulary
    output_format: OutputFormat
    params: DeployParams
    defaults: SamplingDefaults
    model_name: str
    """The base model's name in the API."""
    model_root: str
    """What the base model was loaded from, without its folders."""
    created: int
    """Unix time at which the server started: models have no other date of birth."""
    registry: AdapterRegistry
    """What `model` may name besides the base model."""
    adapter_roots: AdapterRoots
    state_dir: Path
    """What outlives the server."""
    database: Database
    files: Files
    jobs: Jobs
    metrics: Metrics
    lifecycle: Lifecycle


def make_serving(
    engine: Engine,
    tokenizer: "PreTrainedTokenizerBase",
    params: DeployParams,
    generation_config: Mapping[str, Any] | None = None,
) -> Serving:
    """`generation_config` holds what the model's generation_config.json says."""
    root = PurePath(params.model or "").name
    name = params.served_model_name or root
    state_dir = state_folder(params.state_dir)
    database = Database(state_dir, params.database_url)
    registry = AdapterRegistry(
        engine,
        base_name=name,
        model=params.model or "",
        state_dir=state_dir,
        adapter_dir=None if params.adapter_dir is None else Path(params.adapter_dir).expanduser(),
    )
    metrics = Metrics(engine, registry, model_name=name, engine_name=params.infer_backend)
    renderer = PromptRenderer(tokenizer, system=params.system, chat_template=_chat_template(params, tokenizer))
    return Serving(
        engine=engine,
        tokenizer=tokenizer,
        renderer=renderer,
        output_format=find_output_format(
            renderer.template,
            tokenizer.get_added_vocab(),
            tool_call_parser=params.tool_call_parser,
            reasoning_parser=params.reasoning_parser,
        ),
        vocabulary=Vocabulary(tokenizer),
        params=params,
        defaults=sampling_defaults(params, generation_config or {}),
        model_name=name,
        model_root=root,
        created=int(time.time()),
        registry=registry,
        adapter_roots=AdapterRoots(params.adapter_roots),
        state_dir=state_dir,
        database=database,
        files=Files(database, state_dir / "files"),
        jobs=Jobs(
            database,
            state_dir / "jobs",
            metrics.jobs,
            max_running=params.max_running_jobs,
            retries=params.job_retries,
            gpu_memory=params.job_gpu_memory,
            hub_token=params.hub_token,
        ),
        metrics=metrics,
        lifecycle=Lifecycle(engine, partial(load_adapters, registry, params)),
    )


def _chat_template(params: DeployParams, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The template in place of the model's own, None for that one."""
    if not params.use_chat_template:
        return plain_template(tokenizer)
    return None if params.chat_template is None else read_chat_template(params.chat_template)


def get_serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


def get_ready_serving(request: Request) -> Serving:
    """As `get_serving`, but only while requests can be answered; else EngineUnavailable."""
    serving = get_serving(request)
    serving.lifecycle.check_ready()
    return serving


AnyServing = Annotated[Serving, Depends(get_serving)]
"""For routes that answer in every state of the engine."""

ReadyServing = Annotated[Serving, Depends(get_ready_serving)]
"""For routes that need the model."""


async def lease(request: Request, model: str) -> Lease:
    """What `model` names: the base model, an adapter, an alias. Raises ModelNotFound.

    The adapter's version stays loaded until this request has been answered, however that ends.
    """
    found = await get_serving(request).registry.lease(model)
    request.state.answered.callback(found.release)
    return found
