"""LMDeploy's engine: built of our settings, asked for one output at a time, closed, and built again.

What is relied on beyond LMDeploy's documented interface is in this file, `sampler.py` and `hot_slots.py`, and was
read in the one release that is accepted.
"""

import asyncio
import gc
import itertools
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lmdeploy.messages import (
    EngineOutput,
    GenerationConfig,
    PytorchEngineConfig,
    ResponseType,
    ScheduleMetrics,
    TurbomindEngineConfig,
)
from lmdeploy.pytorch.messages import MessageStatus
from lmdeploy.serve.core import AsyncEngine
from lmdeploy.utils import get_logger, get_model
from torch import Tensor

from engines.errors import EngineFailure, UnsupportedModel
from engines.lmdeploy import sampler
from engines.lmdeploy.adapters import name_packed_layers
from engines.lmdeploy.config import LmdeployConfig

log = logging.getLogger(__name__)

RELEASE = "0.18."
"""The only one whose inside is known."""
DTYPES = {"float16", "bfloat16"}
"""Types that LMDeploy has kernels for."""
BASE = "the base model"
REST_SECONDS = 1.0
"""Seconds between two looks at whether LMDeploy's loop moves while something runs: one that does not is woken up."""
MAX_RESTS = 120
"""Looks in a row without a step after which the engine is given up."""


class Library:
    """One `AsyncEngine` at a time. Not to be asked while it is not built."""

    def __init__(self, config: LmdeployConfig) -> None:
        """Raises UnsupportedModel where this environment or the settings will not do."""
        _check(config)
        get_logger("lmdeploy").setLevel(logging.WARNING)
        self._config = config
        self.folder = _local(config)
        self._engine: Any = None
        self._lost = False
        self._waking: asyncio.Task[None] | None = None
        self._rests = 0  # how often LMDeploy's loop was found resting, one time after another
        self._session_ids = itertools.count()
        self._aliases = itertools.count()
        self._users: Counter[str] = Counter()  # of each alias that is shared
        self.preemptions = 0
        """Outputs that had to give their blocks back, so far."""
        self._asked = 0  # outputs that are wanted
        self._inside = 0  # of these, those that the present engine has been asked for
        self._running = 0  # of these, those that have a handle
        self._open = asyncio.Event()  # clear: nobody may begin
        self._idle = asyncio.Event()
        self._idle.set()

    # ---- life

    def build(self, adapters: Mapping[str, Path]) -> None:
        """Load the model, with these adapters fixed in it. Raises UnsupportedModel. Blocks: seconds to minutes."""
        if self._config.backend == "pytorch":
            name_packed_layers()
        try:
            self._engine = AsyncEngine(
                self.folder, backend=self._config.backend, backend_config=engine_config(self._config, adapters)
            )
        except (Exception, SystemExit) as error:  # it ends the process where it finds its environment wanting
            log.debug("LMDeploy could not load the model", exc_info=True)
            raise UnsupportedModel(f"LMDeploy cannot run the model {self._config.model!r}: {_reason(error)}") from error
        if self.agent is not None:
            sampler.install(self.agent)
        if self._config.backend == "pytorch":
            # With no name but the base model's, LMDeploy would take it that there are no adapters, and forget it too
            # late.
            self.adapter_ids[BASE] = self.adapter_ids[None]
            self._count_preemptions(self._engine.engine.scheduler)
            self._engine.engine.req_manager.prepare_send = _at_once
        self._engine.start_loop(asyncio.get_running_loop(), use_async_api=True)
        if self._config.backend == "pytorch":
            self._rests = 0
            self._waking = asyncio.create_task(self._wake(self._engine.engine))
        self._open.set()

    def _count_preemptions(self, scheduler: Any) -> None:
        preempt = scheduler.preempt_seqs

        def count_and_preempt(sequences: Iterable[Any]) -> None:
            sequences = tuple(sequences)
            self.preemptions += sum(sequence.status is not MessageStatus.STOPPED for sequence in sequences)
            preempt(sequences)

        scheduler.preempt_seqs = count_and_preempt

    async def close(self) -> None:
        """May be called twice. What runs ends with EngineFailure."""
        self._open.clear()
        engine, self._engine = self._engine, None
        if engine is None:
            return
        if self._waking is not None:
            self._waking.cancel()
        await asyncio.sleep(0)  # a loop that has not begun yet could not be ended
        engine.close()
        if hasattr(engine.engine, "wait_tasks"):
            # To the end: the loop leaves torch in inference mode meanwhile, and then as it was when it began.
            await asyncio.gather(engine.engine.wait_tasks(), return_exceptions=True)
        del engine
        gc.collect()  # LMDeploy has the collector run seldom, and another engine may need the memory now

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Let what runs finish and nothing else begin, and close the engine; it is to be built again in this
        context."""
        self._open.clear()
        await self._idle.wait()
        await self.close()
        try:
            yield
        finally:
            self._lost = self._engine is None

    def death(self) -> str | None:
        """Why the engine will not answer any more; None where it will."""
        if self._lost:
            return "LMDeploy could not be built again"
        if self._engine is None or not hasattr(self._engine.engine, "get_local_health_status"):
            return None
        status = self._engine.engine.get_local_health_status()
        if not status["alive"]:
            return str(status["message"])
        return "LMDeploy's loop has stopped moving" if self._rests > MAX_RESTS else None

    async def _wake(self, engine: Any) -> None:
        """LMDeploy's loop waits for an event where nothing can be begun, though outputs may be running: then none
        comes."""
        tick = None
        while True:
            await asyncio.sleep(REST_SECONDS)
            metrics, loop = engine.get_schedule_metrics(), engine._engine_loop
            moves = metrics.scheduler_tick != tick or not metrics.active_seqs
            tick, self._rests = metrics.scheduler_tick, 0 if moves else self._rests + 1
            if self._rests and loop is not None:
                loop.has_runable_event.event.set()

    # ---- what it is

    @property
    def agent(self) -> Any:
        """The `ModelAgent` with the model, where that is in this process; None where it is in others."""
        executor = getattr(self._engine.engine, "executor", None)
        return getattr(executor, "model_agent", None)

    @property
    def adapter_ids(self) -> dict[str | None, int]:
        """Name -> LMDeploy's number.

        Its prefix cache goes by the names: one that has been used means its adapter for ever.
        """
        ids: dict[str | None, int] = self._engine.engine.adapter_manager.adapter_id_map
        return ids

    def alias(self, adapter: str | None) -> AbstractContextManager[str]:
        """A name of the same adapter that nobody else uses: the prefix cache has nothing for it."""
        return self._named(f"{BASE if adapter is None else adapter}, alone {next(self._aliases)}", adapter)

    def _salted(self, adapter: str | None, salt: str | None) -> AbstractContextManager[str | None]:
        """A name of the same adapter for requests of this salt: the prefix cache has for it what these have left."""
        if salt is None or self._config.backend == "turbomind":  # which has no prefix cache then
            return nullcontext(adapter)
        return self._named(f"{BASE if adapter is None else adapter}, salt {salt}", adapter)

    @contextmanager
    def _named(self, alias: str, adapter: str | None) -> Iterator[str]:
        self.adapter_ids[alias] = self.adapter_ids[adapter]
        self._users[alias] += 1
        try:
            yield alias
        finally:
            self._users[alias] -= 1
            if not self._users[alias]:
                del self._users[alias]
                self.adapter_ids.pop(alias, None)  # it may be another engine by now

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """Hidden states, (1, tokens, hidden_size), to logits."""
        head: Callable[[Tensor], Tensor] = self.agent.get_logits
        return head

    @property
    def max_model_len(self) -> int:
        return int(getattr(self._engine.engine, "max_session_len", None) or self._engine.session_len)

    @property
    def vocab_size(self) -> int:
        config = self._engine.hf_cfg
        return int(config.get_text_config().vocab_size)

    def metrics(self) -> ScheduleMetrics:
        """State of the queues now. Outputs that wait for a handle are not among those that it counts as waiting."""
        metrics = None if self._engine is None else self._engine.engine.get_schedule_metrics()
        return metrics or ScheduleMetrics()

    @property
    def running(self) -> int:
        return self._running

    @property
    def waiting(self) -> int:
        return self._asked - self._running

    # ---- outputs

    async def infer(
        self, prompt_ids: list[int], config: GenerationConfig, adapter: str | None, salt: str | None = None
    ) -> AsyncGenerator[EngineOutput, None]:
        """Yield what each step adds to one output, stop tokens included. Closing the iterator aborts.

        `adapter` is a name that the engine knows: an unknown one would end it. Cached prefixes are those of requests
        with the same salt. Raises EngineFailure where the engine ends before the output does.
        """
        async with self._handle() as handle:
            with self._salted(adapter, salt) as name:
                outputs = handle.async_stream_infer(
                    next(self._session_ids),
                    input_ids=prompt_ids,
                    gen_config=config,
                    adapter_name=name,
                    stream_output=True,
                )
                async with aclosing(outputs):
                    async for output in outputs:
                        _heed_cancellation()
                        if output.status not in (ResponseType.SUCCESS, ResponseType.FINISH):
                            raise EngineFailure(f"LMDeploy ended this request: {output.status.name}")
                        yield output
                        if output.status is ResponseType.FINISH:
                            return
        raise EngineFailure("LMDeploy ended this request without a reason")  # so a cancellation looks that it swallowed

    @asynccontextmanager
    async def _handle(self) -> AsyncIterator[Any]:
        """One of the engine's `max_batch_size` handles, each of which carries one output at a time."""
        self._asked += 1
        try:
            while not self._open.is_set():
                await self._open.wait()
            self._inside += 1
            self._idle.clear()
            try:
                pool = self._engine.session_mgr.request_handle_pool
                handle = await pool.get()
                self._running += 1
                try:
                    yield handle
                finally:
                    self._running -= 1
                    pool.put(handle)
            finally:
                self._inside -= 1
                if not self._inside:
                    self._idle.set()
        finally:
            self._asked -= 1


def _heed_cancellation() -> None:
    """Raise what LMDeploy may lose: before Python 3.12, its `wait_for` drops a cancellation that comes with a step."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _at_once() -> None:
    """In place of the queue in which LMDeploy lets one reader of outputs at a time go on: it never forgets those
    that were cancelled in it.
    """


def _check(config: LmdeployConfig) -> None:
    installed = version("lmdeploy")
    if not installed.startswith(RELEASE):
        message = f"LMDeploy {installed} is installed, and only {RELEASE}* is supported: install the engine again"
        raise UnsupportedModel(message)
    if not torch.cuda.is_available():
        raise UnsupportedModel("LMDeploy needs a CUDA GPU, and none is found", param="infer_backend")
    if config.dtype is not None and config.dtype not in DTYPES:
        message = f"LMDeploy computes in {' or '.join(sorted(DTYPES))}, not in {config.dtype}"
        raise UnsupportedModel(message, param="torch_dtype")
    try:
        engine_config(config, {})
    except (AssertionError, ValueError) as error:
        raise UnsupportedModel(f"LMDeploy does not take these settings: {_reason(error)}") from error


def _local(config: LmdeployConfig) -> str:
    """The folder of the model, downloaded where it is named by its hub id."""
    if Path(config.model).is_dir():
        return config.model
    try:
        return str(get_model(config.model, revision=config.revision, token=config.token))
    except Exception as error:  # as many kinds as there are hubs
        message = f"the model {config.model!r} is neither a folder nor to be had from the hub: {_reason(error)}"
        raise UnsupportedModel(message, param="model") from error


def engine_config(config: LmdeployConfig, adapters: Mapping[str, Path]) -> PytorchEngineConfig | TurbomindEngineConfig:
    common: dict[str, Any] = {
        "dtype": config.dtype or "auto",
        "tp": config.tp,
        "session_len": config.max_model_len,
        "max_batch_size": config.max_num_seqs,
        "cache_max_entry_count": config.cache_max_entry_count,
        "quant_policy": config.quant_policy,
        "enable_prefix_caching": config.enable_prefix_caching,
        "enable_metrics": False,  # the gauges are ours
    }
    if config.max_num_batched_tokens is not None:
        common["max_prefill_token_num"] = config.max_num_batched_tokens
    if config.backend == "turbomind":
        blocks = {} if config.block_size is None else {"cache_block_seq_len": config.block_size}
        return TurbomindEngineConfig(**common, **blocks)
    blocks = {} if config.block_size is None else {"block_size": config.block_size}
    return PytorchEngineConfig(
        **common,
        **blocks,
        eager_mode=config.enforce_eager,
        logprobs_mode="raw_logprobs",
        adapters={name: str(folder) for name, folder in adapters.items()} or None,
    )


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
