"""vLLM's asyncio engine, as a `LibraryEngine` asks for it: how it is built of our settings, and what it then is.

vLLM starts other processes below this one. Once they have died it says so and stays dead.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, get_args

from transformers import PreTrainedTokenizerFast
from vllm.config import VllmConfig as Settings
from vllm.model_executor.models import supports_lora
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from engines.adapters.pins import max_pinned
from engines.capabilities import AdapterSupport, Capabilities
from engines.checkpoint.loading import load_config, load_eos_token_ids
from engines.checkpoint.structure import Structure, describe
from engines.errors import EngineFailure, TuneserveError, UnsupportedParameter
from engines.library.core import Load
from engines.text.request_check import check_prompt
from engines.types import EngineStats, GenerationRequest, Head, PoolingRequest, StructuredKind
from engines.vllm import classes, failures, sampling
from engines.vllm.adapters import VllmSlots
from engines.vllm.arguments import engine_settings, lora_arguments
from engines.vllm.config import VllmConfig
from engines.vllm.failures import FailureLog
from engines.vllm.folder import PrivateFolder
from engines.vllm.request import VllmRequest
from engines.vllm.stats import Gauges

log = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 1.0
"""Seconds for vLLM's processes to end by themselves: they have nothing to save."""


class VllmCore:
    def __init__(self, config: VllmConfig) -> None:
        self._config = config
        self._folder = PrivateFolder()
        self._failures = FailureLog(self._folder.path)
        self._gauges = Gauges()
        self._llm: AsyncLLM | None = None
        self._capabilities: Capabilities
        self._grammar_end: int | None = None
        self.slots: VllmSlots | None = None

    # ---- life

    async def start(self) -> Capabilities:
        hf_config = load_config(self._config.model, revision=self._config.revision, token=self._config.token)
        head = await asyncio.to_thread(classes.find_head, self._config, hf_config)
        structure = describe(hf_config)
        self._llm = llm = await asyncio.to_thread(self._build, structure, head)
        adapters = await self._adapter_support(llm, structure, head)
        if adapters is not None:
            self.slots = VllmSlots(llm, adapters, self._folder.path)
        self._capabilities = self._describe(llm, adapters, head)
        return self._capabilities

    def _build(self, structure: Structure, head: Head | None) -> AsyncLLM:
        """Blocks until the model is loaded, which takes from seconds to minutes."""
        try:
            config = self._settings(structure, {} if head is None else classes.arguments())
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

    def _settings(self, structure: Structure, more: Mapping[str, Any]) -> Settings:
        config = engine_settings(self._config, structure, **more)
        if self._config.max_loras and structure.linears and self._takes_adapters(config):
            return engine_settings(self._config, structure, **more, **lora_arguments(self._config, structure))
        return config

    def _takes_adapters(self, config: Settings) -> bool:
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

    async def _adapter_support(self, llm: AsyncLLM, structure: Structure, head: Head | None) -> AdapterSupport | None:
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
            experts=structure.experts,
            head_inputs=None if head is None else structure.config.get_text_config().hidden_size,
            padding=None if head is None else head.padding,
            max_pinned=max_pinned(self._config.max_loras),
        )

    def _describe(self, llm: AsyncLLM, adapters: AdapterSupport | None, head: Head | None) -> Capabilities:
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
            unsupported=frozenset({"num_beams", "length_penalty", "thinking_budget"}),
            head=head,
            adapters=adapters,
            cache_config=llm.vllm_config.cache_config.metrics_info(),
            sleep=self._config.enable_sleep_mode,
        )

    async def stop(self) -> None:
        llm, self._llm = self._llm, None
        if llm is not None:
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # for it the end would be an error
            await asyncio.to_thread(llm.shutdown, SHUTDOWN_SECONDS)
        self._folder.remove()

    def death(self) -> str | None:
        if self._llm is None or not self._llm.errored:
            return None
        cause = self._failures.first()
        return "vLLM's processes ended" if cause is None else str(cause)

    async def sleep(self) -> None:
        """Give back the GPU's memory: weights go to host memory, and the KV cache is dropped."""
        await self._started().sleep(level=1)

    async def wake_up(self) -> None:
        await self._started().wake_up()

    def stats(self, load: Load) -> EngineStats:
        # The scheduler tells its gauges with its steps, so what it said last need not be true of an idle engine.
        running = min(self._gauges.running, load.outputs)
        return EngineStats(
            running=running,
            waiting=load.outputs - running,
            kv_cache_usage=self._gauges.kv_cache_usage if load.outputs else 0.0,
            prefix_cache_queries=self._gauges.prefix_cache_queries,
            prefix_cache_hits=self._gauges.prefix_cache_hits,
            preemptions=self._gauges.preemptions,
            waiting_for=load.waiting_for,
            step_sizes=self._gauges.sizes.counts,
            step_tokens=self._gauges.sizes.tokens,
            spec_drafts=self._gauges.drafts,
            spec_draft_tokens=self._gauges.draft_tokens,
            spec_accepted=dict(self._gauges.accepted),
            steps=self._gauges.steps,
        )

    def _started(self) -> AsyncLLM:
        assert self._llm is not None, "the engine has started"
        return self._llm

    # ---- requests

    def check(self, request: GenerationRequest) -> None:
        if self._capabilities.head is not None:
            raise UnsupportedParameter("the model has a head that classifies, and generates no text", param="model")
        sampling.check(request, self._capabilities)

    def ask(self, request: GenerationRequest) -> VllmRequest:
        return VllmRequest(self._started(), self.slots, request, self._capabilities, self._grammar_end)

    def check_pooling(self, request: PoolingRequest) -> None:
        limits = {"vocab_size": self._capabilities.vocab_size, "max_model_len": self._capabilities.max_model_len}
        check_prompt(request.prompt_ids, **limits, more=0)
        makes = "texts" if self._capabilities.head is None else "classes"
        if request.task == "embed":
            raise UnsupportedParameter(f"vLLM makes either {makes} or embeddings of a model: this one makes {makes}")
        if self._capabilities.head is None:
            raise UnsupportedParameter("the model has no head to classify with", param="model")

    async def pool(self, request: PoolingRequest, adapter: str | None) -> list[float]:
        lora = None if self.slots is None or adapter is None else self.slots.requests[adapter]
        return await classes.classify(self._started(), request, lora)
