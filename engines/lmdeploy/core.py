"""LMDeploy, as a `LibraryEngine` asks for it: how it is built of our settings, and what it then is."""

import logging
import random
from typing import get_args

from engines.capabilities import Capabilities
from engines.checkpoint.heads import refuse_classifier
from engines.checkpoint.loading import load_config, load_eos_token_ids, load_tokenizer
from engines.checkpoint.structure import Structure
from engines.errors import UnsupportedModel, UnsupportedParameter
from engines.library.core import Load
from engines.lmdeploy.adapters import adaptable
from engines.lmdeploy.config import LmdeployConfig
from engines.lmdeploy.edits import EDITS
from engines.lmdeploy.hot_slots import HotSlots
from engines.lmdeploy.library import Library
from engines.lmdeploy.prompts import PromptObserver, compute_prompt
from engines.lmdeploy.rebuild import Rebuild
from engines.lmdeploy.request import Constraints, LmdeployRequest
from engines.sampler.grammar import GrammarCompiler, MaskWorker
from engines.text.request_check import check_prompt
from engines.types import EngineStats, GenerationRequest, PoolingRequest, StructuredKind

log = logging.getLogger(__name__)


class LmdeployCore:
    def __init__(self, config: LmdeployConfig) -> None:
        """Raises UnsupportedModel where this machine or the settings will not do."""
        self._config = config
        self._library = Library(config)
        self._capabilities: Capabilities
        self._constraints: Constraints | None = None
        self._seeds = random.Random(config.seed)
        self.slots: HotSlots | Rebuild | None = None

    # ---- life

    async def start(self) -> Capabilities:
        refuse_classifier(load_config(self._library.folder), "lmdeploy")
        reachable = self._config.backend == "pytorch" and self._config.tp == 1  # the model is in this process
        structure = adaptable(self._library.folder) if self._config.backend == "pytorch" else None
        if structure is not None and structure.linears:
            self.slots = await self._build_with_adapters(structure, reachable=reachable)
        if not isinstance(self.slots, HotSlots):
            self._library.build({})
        eos_token_ids = load_eos_token_ids(self._library.folder)
        if reachable:
            self._constraints = self._compile_constraints(eos_token_ids)
        kinds: frozenset[StructuredKind] = frozenset(get_args(StructuredKind))
        observed = frozenset() if reachable else frozenset((*EDITS, "prompt_logprobs"))
        lost = frozenset({"logprobs"}) if self._config.backend == "turbomind" else frozenset()
        if self._config.backend == "turbomind" and self._config.enable_prefix_caching:
            lost |= {"cache_salt"}
        self._capabilities = Capabilities(
            max_model_len=self._library.max_model_len,
            vocab_size=self._library.vocab_size,
            max_logprobs=min(self._config.max_logprobs, self._library.vocab_size),
            eos_token_ids=eos_token_ids,
            structured=kinds if self._constraints else frozenset(),
            unsupported=observed | lost | {"priority", "num_beams", "length_penalty", "thinking_budget"},
            embeddings=reachable,
            adapters=None if self.slots is None else self.slots.support,
        )
        return self._capabilities

    async def _build_with_adapters(self, structure: Structure, *, reachable: bool) -> HotSlots | Rebuild | None:
        """Choose how adapters come and go, None where they cannot. Only with hot slots the engine is built then.

        `reachable`: the model will be in this process.
        """
        slots, rank = self._config.max_loras, self._config.max_lora_rank
        if reachable:
            hot = HotSlots(self._library, slots, rank)
            try:
                hot.build(structure)
                problem = await hot.check() if hot.support.linears else None
            except UnsupportedModel as error:
                if not isinstance(error.__cause__, AssertionError):
                    raise
                problem = None  # that is how LMDeploy says that a layer has no place for LoRA
            if problem is None and hot.support.linears:
                return hot
            await self._library.close()
            if problem is None:
                log.warning("LMDeploy's model of this kind has no place for adapters")
                return None
            log.warning("adapters are loaded by building the engine anew: %s", problem)
        return Rebuild(self._library, slots, rank, structure)

    def _compile_constraints(self, eos_token_ids: tuple[int, ...]) -> Constraints | None:
        """None where the tokenizer does not say what bytes its tokens stand for."""
        tokenizer = load_tokenizer(self._library.folder)
        try:
            compiler = GrammarCompiler(tokenizer, self._library.vocab_size, eos_token_ids)
            return Constraints(compiler, MaskWorker(compiler))
        except UnsupportedModel as error:
            log.warning("%s", error.message)
            return None

    async def stop(self) -> None:
        await self._library.close()
        if isinstance(self.slots, Rebuild):
            self.slots.close()
        if self._constraints is not None:
            self._constraints.masks.close()

    def death(self) -> str | None:
        return self._library.death()

    async def sleep(self) -> None:
        raise AssertionError("capabilities say that it cannot sleep")

    async def wake_up(self) -> None:
        raise AssertionError("capabilities say that it cannot sleep")

    def stats(self, load: Load) -> EngineStats:
        metrics = self._library.metrics()
        return EngineStats(
            running=self._library.running - metrics.waiting_seqs,
            waiting=self._library.waiting + metrics.waiting_seqs + load.held_back,
            kv_cache_usage=metrics.cache_usage,
            prefix_cache_queries=load.prompt_tokens,
            prefix_cache_hits=load.cached_tokens,
            preemptions=self._library.preemptions,
            waiting_for=load.waiting_for,
        )

    # ---- requests

    def check(self, request: GenerationRequest) -> None:
        self._check_prompt(request.prompt_ids, more=min(request.sampling.max_new_tokens, 1))

    def ask(self, request: GenerationRequest) -> LmdeployRequest:
        return LmdeployRequest(self._library, request, self._capabilities, self._constraints, self._seeds)

    def check_pooling(self, request: PoolingRequest) -> None:
        self._check_prompt(request.prompt_ids, more=1)  # LMDeploy insists on a token
        if request.task == "classify":
            raise UnsupportedParameter("LMDeploy runs causal language models, which have no head to classify with")

    async def pool(self, request: PoolingRequest, adapter: str | None) -> list[float]:
        observer = PromptObserver(request.prompt_ids, head=self._library.head)
        await compute_prompt(self._library, request.prompt_ids, adapter, observer)
        assert observer.last_hidden is not None, "the prompt was computed"
        embedding: list[float] = (observer.last_hidden / observer.last_hidden.norm()).tolist()
        return embedding

    def _check_prompt(self, prompt_ids: list[int], *, more: int) -> None:
        limits = {"vocab_size": self._capabilities.vocab_size, "max_model_len": self._capabilities.max_model_len}
        check_prompt(prompt_ids, **limits, more=more)
