"""Make the parts of a server, each of which is given what it needs when it is made."""

import asyncio
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from engines.adapters.registry import AdapterRegistry
from engines.adapters.state_folder import state_folder, temporary_folder
from engines.engine import Engine
from engines.errors import InvalidRequest
from engines.params.deploy import DeployParams
from server.adapters.at_start import load_adapters
from server.adapters.roots import AdapterRoots
from server.batches.service import Batches
from server.batches.store import BatchStore
from server.deps import Parts
from server.evals.run import Shared as SharedByRuns
from server.evals.service import Evals
from server.evals.store import EvalStore
from server.evals.stored import StoredAnswers
from server.files.files import Files, Quota
from server.fine_tuning.create import Creator
from server.fine_tuning.graders import Graders
from server.fine_tuning.publish import Publisher
from server.http.body import MIB
from server.http.connections.room import Connections, most_connections
from server.http.ignored import IgnoredFields
from server.http.keys.keys import KeyLimits, Keys
from server.http.settings import HttpSettings
from server.inference.fine_tuned import FineTunedModels
from server.inference.inference import Inference
from server.inference.lifecycle import Lifecycle
from server.inference.rate_limits import RateLimits
from server.jobs.executor import LocalExecutor
from server.jobs.hub import JobHub
from server.jobs.jobs import GIB, Jobs, Machine
from server.jobs.metrics import JobMetrics
from server.jobs.sources import ServedSource, Sources
from server.jobs.store import JobStore
from server.kept.kept import Kept
from server.kept.shelf import Limits
from server.metrics.connections import ConnectionMetrics
from server.metrics.families import PREFIX
from server.metrics.ignored import IgnoredMetrics
from server.metrics.keys import KeyMetrics
from server.metrics.metrics import Metrics
from server.model.served import ServedModel, make_served_model, model_source
from server.pools import PoolMetrics, Pools
from server.responses.again import Unfinished
from server.responses.background import Background
from server.responses.context import Contexts
from server.responses.responses import Responses
from server.responses.seal import Seal
from server.store.database import Database
from server.store.reserve import DiskReserve
from server.tasks import Tasks
from server.uploads.uploads import Uploads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DAY_SECONDS = 24 * 3600


def make_parts(
    engine: Engine,
    tokenizer: "PreTrainedTokenizerBase",
    params: DeployParams,
    generation_config: Mapping[str, Any] | None = None,
    *,
    machine: Machine | None = None,
    keys: Keys | None = None,
) -> Parts:
    """`generation_config` holds what the model's generation_config.json says; `machine` runs the jobs, this one unless
    given; `keys` are those that `params` name, unless given. Raises WrongKeys, TooManyFiles, and InvalidRequest for
    parameters that exclude each other."""
    keys = Keys(params.api_key, file=params.api_key_file) if keys is None else keys
    state = _state(params)
    # 1. The model side and the engine side.
    model = make_served_model(tokenizer, params, generation_config or {})
    database = Database(None if params.without_state else state, params.database_url)
    pools = Pools()
    inference = _inference(engine, model, params, state, FineTunedModels(database), keys, pools)
    registry = inference.metrics.registry
    PoolMetrics(pools, registry, prefix=PREFIX)
    tasks = Tasks(registry, prefix=PREFIX)
    connections = _connections(params, registry)
    key_metrics = KeyMetrics(registry, prefix=PREFIX, names=lambda: keys.names)
    ignored_fields = IgnoredFields(IgnoredMetrics(registry, prefix=PREFIX).count)
    # 2. The store side.
    reserve = DiskReserve(state, int(params.disk_reserve * MIB))
    files = _files(database, state / "files", reserve, pools, params)
    uploads = Uploads(database, files, max_bytes=int(params.max_upload_size * MIB))
    store = JobStore(database)
    publisher = Publisher(model=model, served=params, inference=inference, store=store, files=files)
    hub = JobHub(allowed=params.job_hub, cache=state / "hub", max_bytes=int(params.job_hub_max_size * GIB))
    jobs = Jobs(
        store,
        state / "jobs",
        JobMetrics(registry, prefix=PREFIX),
        machine or Machine(executor=LocalExecutor(memory=_bytes(params.job_memory))),
        publisher,
        hub,
        tasks,
        reserve,
        max_running=params.max_running_jobs,
        max_queued=params.max_queued_jobs,
        retries=params.job_retries,
        gpu_memory=params.job_gpu_memory,
        validation_timeout=params.job_validation_timeout,
    )
    kept = Kept(
        database,
        reserve,
        _kept_limits(params),
        registry,
        prefix=PREFIX,
        keep_completions=params.keep_completions,
    )
    contexts = Contexts(kept.responses, kept.conversations)
    responses = Responses(Seal(state / "responses.key"), contexts, kept.responses)
    background = Background(kept.responses, inference.lifecycle)
    # 3. What routes do with several of them.
    http = HttpSettings(
        max_body_bytes=int(params.max_body_size * MIB),
        refuse_unknown=params.unknown_fields == "refuse",
        keep_alive_seconds=params.sse_keep_alive_interval,
        on_refusal=inference.metrics.count_rejection,
    )
    concurrency = _batch_concurrency(params)
    slots = asyncio.Semaphore(concurrency)
    batches = Batches(
        BatchStore(database),
        state / "batches",
        files,
        reserve,
        model,
        inference,
        kept.completions,
        responses,
        tasks,
        refuse_unknown=http.refuse_unknown,
        max_line_bytes=http.max_body_bytes,
        concurrency=concurrency,
        slots=slots,
        max_queued=params.max_queued_batches,
    )
    served = ServedSource(name=model.name, source=model_source(params), revision=params.model_revision)
    sources = Sources(jobs, files, served, params.job_roots, hub, state=state, runs_python=params.python_graders)
    creator = Creator(model=model, served=params, inference=inference, jobs=jobs, files=files)
    graders = Graders(model=model, inference=inference, runs_python=params.python_graders)
    evals = Evals(
        SharedByRuns(
            store=EvalStore(database),
            stored=StoredAnswers(kept.completions, kept.responses),
            reserve=reserve,
            model=model,
            inference=inference,
            kept=kept.completions,
            responses=responses,
            max_line_bytes=http.max_body_bytes,
            concurrency=concurrency,
            slots=slots,
        ),
        state / "evals",
        files,
        graders,
        tasks,
        max_queued=params.max_queued_batches,
        max_bytes=int(params.max_kept_size * GIB),
    )
    roots = AdapterRoots(params.adapter_roots)
    return Parts(
        params,
        keys,
        key_metrics,
        connections,
        ignored_fields,
        http,
        model,
        inference,
        pools,
        tasks,
        roots,
        database,
        files,
        uploads,
        kept,
        kept.responses,
        kept.completions,
        kept.conversations,
        jobs,
        sources,
        batches,
        evals,
        creator,
        graders,
        responses,
        background,
        Unfinished(kept.responses, background, responses, model, inference),
    )


def _state(params: DeployParams) -> Path:
    """The folder of what is kept. Raises InvalidRequest."""
    if not params.without_state:
        return state_folder(params.state_dir)
    for name, given in (("state_dir", params.state_dir), ("database_url", params.database_url)):
        if given is not None:
            raise InvalidRequest(f"{name} has no effect beside without_state: give one of the two.", param=name)
    return temporary_folder()


def _inference(
    engine: Engine,
    model: ServedModel,
    params: DeployParams,
    state: Path,
    fine_tuned: FineTunedModels,
    keys: Keys,
    pools: Pools,
) -> Inference:
    adapters = AdapterRegistry(
        engine,
        base_name=model.name,
        model=params.model or "",
        state_dir=state,
        adapter_dir=None if params.adapter_dir is None else Path(params.adapter_dir).expanduser(),
    )
    return Inference(
        engine=engine,
        adapters=adapters,
        fine_tuned=fine_tuned,
        lifecycle=Lifecycle(engine, partial(load_adapters, adapters, params.adapters, params.hub_token)),
        metrics=Metrics(engine, adapters, model_name=model.name, engine_name=params.infer_backend),
        rate_limits=RateLimits(keys.limits_of, _key_limits(params)),
        weight_of=keys.weight_of,
        pools=pools,
    )


def _connections(params: DeployParams, registry: CollectorRegistry) -> Connections:
    """Raises TooManyFiles."""
    connections = Connections(
        most=most_connections(params.max_connections),
        on_refusal=lambda error: metrics.count_ended(error),
        root_path=params.root_path,
    )
    metrics = ConnectionMetrics(registry, prefix=PREFIX, count_open=lambda: len(connections))
    return connections


def _files(database: Database, folder: Path, reserve: DiskReserve, pools: Pools, params: DeployParams) -> Files:
    return Files(
        database,
        folder,
        reserve,
        pools.files,
        max_bytes=int(params.max_file_size * MIB),
        quota=Quota(files=params.max_files, bytes=int(params.max_files_size * GIB)),
    )


def _kept_limits(params: DeployParams) -> Limits:
    return Limits(
        number=params.max_kept, bytes=int(params.max_kept_size * GIB), seconds=int(params.kept_days * DAY_SECONDS)
    )


def _key_limits(params: DeployParams) -> KeyLimits:
    return KeyLimits(**{field.name: getattr(params, f"key_{field.name}") for field in fields(KeyLimits)})


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * GIB)


def _batch_concurrency(params: DeployParams) -> int:
    """Requests of batches that the engine has at a time, so that its slots and its queue have room for others."""
    slots = params.max_batch_size or params.max_num_seqs
    return max(1, min(params.batch_concurrency, slots // 2, params.max_num_queued_reqs))
