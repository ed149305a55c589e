"""vLLM's asyncio engine as an `Engine`.

It lives in a process of its own (`process.py`), and vLLM starts others below that. Once they have died it says so
and stays dead: the server starts another process.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from transformers import PreTrainedTokenizerFast
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.model_executor.models import supports_lora
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from engines.adapters.pins import max_pinned
from engines.adapters.turns import AdapterTurns
from engines.capabilities import AdapterSupport, Capabilities
from engines.checkpoint.loading import load_config, load_eos_token_ids
from engines.checkpoint.structure import Structure, describe
from engines.errors import (
    EngineFailure,
    EngineUnavailable,
    InvalidRequest,
    TuneserveError,
    UnsupportedParameter,
)
from engines.process.outputs import Outputs
from engines.text.request_check import check_prompt
from engines.types import (
    EmbeddingRequest,
    EngineState,
    EngineStats,
    FinishReason,
    GenerationRequest,
    Health,
    StructuredKind,
    TokenOutput,
)
from engines.vllm import failures, sampling
from engines.vllm.adapters import VllmSlots
from engines.vllm.arguments import engine_settings
from engines.vllm.config import VllmConfig
from engines.vllm.failures import FailureLog
from engines.vllm.folder import PrivateFolder
from engines.vllm.stats import Gauges

log = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 1.0
"""That vLLM's processes get to end by themselves: they have nothing to save."""


@dataclass(slots=True)
class _Running:
    """A request: its outputs as they come, and the tasks that fetch them from vLLM."""

    outputs: Outputs
    fetching: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    arrived: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    """When it was given to vLLM."""
    told: bool = False
    """Whether its first output is out, and with it what there is to tell of the prompt."""

    def cancel(self) -> None:
        for task in self.fetching.values():
            task.cancel()


class VllmCore:
    def __init__(self, config: VllmConfig) -> None:
        self._config = config
        self._state = EngineState.STARTING
        self._folder = PrivateFolder()
        self._failures = FailureLog(self._folder.path)
        self._gauges = Gauges()
        self._llm: AsyncLLM | None = None
        self._capabilities: Capabilities | None = None
        self._slots: VllmSlots | None = None
        self._turns = AdapterTurns(0, put=_no_slot, take=_no_slot)
        self._grammar_end: int | None = None
        self._running: dict[str, _Running] = {}

    # ---- life

    async def start(self) -> None:
        structure = describe(load_config(self._config.model, revision=self._config.revision, token=self._config.token))
        self._llm = llm = await asyncio.to_thread(self._build, structure)
        adapters = await self._adapter_support(llm, structure)
        self._capabilities = self._describe(llm, adapters)
        if adapters is not None:
            self._slots = slots = VllmSlots(llm, adapters, self._folder.path)
            self._turns = AdapterTurns(self._config.max_loras, put=slots.put, take=slots.take)
        self._state = EngineState.READY

    def _build(self, structure: Structure) -> AsyncLLM:
        """Blocks until the model is loaded, which takes from seconds to minutes."""
        try:
            config = engine_settings(self._config, structure, lora=False)
            if self._config.max_loras and structure.linears and self._takes_adapters(config):
                config = engine_settings(self._config, structure, lora=True)
        except TuneserveError:
            raise
        except Exception as error:  # whatever vLLM raises while it reads its settings is about these
            raise failures.describe(error).to_error() from error
        try:
            return AsyncLLM.from_vllm_config(
                config, stat_loggers=[lambda config, index: self._gauges], disable_log_stats=True
            )
        except Exception as error:  # the reason is in its processes' logs, whatever is raised here
            cause = self._failures.first()
            if cause is not None:
                raise cause.to_error() from error
            raise EngineFailure(f"vLLM's processes ended while they started: {error}") from error

    def _takes_adapters(self, config: Any) -> bool:
        if config.model_config.is_moe and current_platform.is_cpu():  # its workers die of the first request
            log.warning("vLLM has no adapters for mixtures of experts on CPUs: the base model alone is served")
            return False
        model_class, _ = config.model_config.registry.resolve_model_cls(
            config.model_config.architectures, config.model_config
        )
        if supports_lora(model_class):
            return True
        log.warning("vLLM has no adapters for %s: the base model alone is served", model_class.__name__)
        return False

    async def _adapter_support(self, llm: AsyncLLM, structure: Structure) -> AdapterSupport | None:
        if llm.vllm_config.lora_config is None:
            return None
        by_worker = await llm.collective_rpc("adapted", args=(list(structure.linears),))
        adapted = {path for paths in by_worker for path in paths}
        if not adapted:
            log.warning("vLLM adapts no layer that the model has by its own names: the base model alone is served")
            return None
        return AdapterSupport(
            max_rank=self._config.max_lora_rank,
            linears={path: shape for path, shape in structure.linears.items() if path in adapted},
            max_pinned=max_pinned(self._config.max_loras),
        )

    def _describe(self, llm: AsyncLLM, adapters: AdapterSupport | None) -> Capabilities:
        source = {"revision": self._config.revision, "token": self._config.token}
        tokenizer: Any = llm.get_tokenizer()
        constrained = isinstance(tokenizer, PreTrainedTokenizerFast) and tokenizer.eos_token_id is not None
        self._grammar_end = tokenizer.eos_token_id if constrained else None
        kinds: frozenset[StructuredKind] = frozenset(get_args(StructuredKind))
        return Capabilities(
            max_model_len=llm.model_config.max_model_len,
            vocab_size=llm.model_config.get_vocab_size(),
            max_logprobs=self._config.max_logprobs,
            eos_token_ids=load_eos_token_ids(self._config.model, **source),
            structured=kinds if constrained else frozenset(),
            unsupported=frozenset({"num_beams", "length_penalty"}),
            adapters=adapters,
            sleep=self._config.enable_sleep_mode,
        )

    async def stop(self) -> None:
        self._state = EngineState.STOPPED
        for running in self._running.values():
            running.outputs.fail(EngineUnavailable("The server is shutting down."))
        llm, self._llm = self._llm, None
        if llm is not None:
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # for it the end would be an error
            await asyncio.to_thread(llm.shutdown, SHUTDOWN_SECONDS)
        self._folder.remove()

    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise EngineUnavailable("the engine is starting")
        return self._capabilities

    def health(self) -> Health:
        up = self._state in (EngineState.READY, EngineState.SLEEPING)
        if up and self._llm is not None and self._llm.errored:
            cause = self._failures.first()
            return Health(EngineState.FAILED, "vLLM's processes ended" if cause is None else str(cause))
        return Health(self._state)

    def stats(self) -> EngineStats:
        # The scheduler tells its gauges with its steps, so what it said last need not be true of an idle engine.
        outputs = sum(len(running.outputs.open) for running in self._running.values())
        running = min(self._gauges.running, outputs)
        return EngineStats(
            running=running,
            waiting=outputs - running,
            kv_cache_usage=self._gauges.kv_cache_usage if outputs else 0.0,
            prefix_cache_queries=self._gauges.prefix_cache_queries,
            prefix_cache_hits=self._gauges.prefix_cache_hits,
            preemptions=self._gauges.preemptions,
            adapter_slots=self._turns.resident,
            adapter_loads=self._turns.loads,
            adapter_evictions=self._turns.evictions,
        )

    def _ready(self) -> AsyncLLM:
        """Raises EngineUnavailable."""
        health = self.health()
        if self._llm is None or health.state is not EngineState.READY:
            raise EngineUnavailable(f"the engine is {health.state}")
        return self._llm

    # ---- sleep

    async def sleep(self) -> None:
        """Give back the GPU's memory: weights go to host memory, and the KV cache is dropped."""
        if not self._config.enable_sleep_mode:
            raise UnsupportedParameter("the engine was started without enable_sleep_mode")
        if self._state is EngineState.SLEEPING:
            return
        llm = self._ready()
        self._state = EngineState.SLEEPING
        while self._running:
            await asyncio.sleep(0.05)
        await llm.sleep(level=1)

    async def wake_up(self) -> None:
        if self._state is EngineState.SLEEPING and self._llm is not None:
            await self._llm.wake_up()
            self._state = EngineState.READY

    # ---- requests

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        llm = self._ready()
        sampling.check(request, self.capabilities())
        if request.request_id in self._running:
            raise InvalidRequest(f"request id {request.request_id!r} is in use")
        running = self._running[request.request_id] = _Running(Outputs(request.n))
        computing = asyncio.create_task(self._compute(llm, request, running))
        try:
            async for output in running.outputs:
                yield output
        finally:
            del self._running[request.request_id]
            computing.cancel()
            await asyncio.gather(computing, return_exceptions=True)

    async def _compute(self, llm: AsyncLLM, request: GenerationRequest, running: _Running) -> None:
        """Have vLLM make the outputs.

        Apart from who reads them, so that an adapter can be unloaded under a slow reader.
        """
        try:
            async with self._turns.use(request.adapter) as turn:
                running.begun = time.monotonic()
                lora = None if self._slots is None or turn.version is None else self._slots.requests[turn.version]
                for index in running.outputs.open:
                    running.fetching[index] = asyncio.create_task(self._fetch(llm, request, index, lora, running))
                turn.end = running.cancel
                await asyncio.gather(*running.fetching.values(), return_exceptions=True)
        except TuneserveError as error:
            running.outputs.fail(error)

    async def _fetch(
        self, llm: AsyncLLM, request: GenerationRequest, index: int, lora: LoRARequest | None, running: _Running
    ) -> None:
        """Read one output from vLLM to its end; a task that is cancelled ends it there too."""
        try:
            outputs = llm.generate(
                tokens_input(request.prompt_ids),
                sampling.to_vllm(request, index, self.capabilities(), self._grammar_end),
                f"{request.request_id}-{index}",
                lora_request=lora,
                priority=request.priority,
            )
            async for output in outputs:
                self._tell(request, running, index, output)
        except VLLMClientError as error:
            running.outputs.fail(InvalidRequest(str(error.args[0]), param=getattr(error, "parameter", None)))
        except TuneserveError as error:
            running.outputs.fail(error)
        except EngineDeadError:
            running.outputs.fail(EngineFailure("vLLM's processes ended while they ran this request"))
        except Exception:  # vLLM's, of any kind: whoever asked is to hear of it
            log.exception("a request failed")
            running.outputs.fail(EngineFailure("vLLM failed while it computed this request"))

    def _tell(self, request: GenerationRequest, running: _Running, index: int, made: RequestOutput) -> None:
        if index not in running.outputs.open:
            return
        output = sampling.to_output(index, made.outputs[0])
        if request.sampling.max_new_tokens == 0:
            none = None if output.logprobs is None else ()
            output = TokenOutput(index=index, logprobs=none, finish_reason=FinishReason.LENGTH)
        if not running.told:
            running.told = True
            waited = running.begun - running.arrived
            if made.metrics is not None:
                waited += max(0.0, made.metrics.scheduled_ts - made.metrics.queued_ts)
            prompt = made.prompt_logprobs
            output = replace(
                output,
                cached_tokens=made.num_cached_tokens or 0,
                queue_seconds=waited,
                prompt_logprobs=None if prompt is None else tuple(sampling.token_logprobs(prompt)),
            )
        running.outputs.put(output)

    def finish(self, request_id: str, index: int) -> None:
        running = self._running.get(request_id)
        if running is not None and running.outputs.finish(index) and index in running.fetching:
            running.fetching[index].cancel()

    async def embed(self, request: EmbeddingRequest) -> list[float]:
        capabilities = self.capabilities()
        limits = {"vocab_size": capabilities.vocab_size, "max_model_len": capabilities.max_model_len}
        check_prompt(request.prompt_ids, **limits, more=0)
        raise UnsupportedParameter("vLLM makes either texts or embeddings of a model: this one makes texts")

    # ---- adapters

    async def load_adapter(self, version: str, folder: Path, *, pinned: bool = False) -> None:
        self._ready()
        if self.capabilities().adapters is None:
            raise UnsupportedParameter("this engine serves the base model only")
        await self._turns.load(version, folder, pinned=pinned)

    async def unload_adapter(self, version: str) -> None:
        await self._turns.unload(version)


async def _no_slot(*_: object) -> None:
    raise AssertionError("there are no slots")
