"""LMDeploy as an `Engine`, in the process that has it. Deaths are final: a new process gets over them."""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from lmdeploy.messages import EventType, RequestMetrics, ResponseType

from engines.adapters.turns import AdapterTurns, Turn
from engines.capabilities import Capabilities
from engines.checkpoint.loading import load_eos_token_ids, load_tokenizer
from engines.errors import (
    EngineFailure,
    EngineUnavailable,
    InvalidRequest,
    TuneserveError,
    UnsupportedModel,
    UnsupportedParameter,
)
from engines.lmdeploy.adapters import adaptable_linears
from engines.lmdeploy.config import LmdeployConfig
from engines.lmdeploy.edits import EDITS, OutputEdits
from engines.lmdeploy.hot_slots import HotSlots
from engines.lmdeploy.library import Library
from engines.lmdeploy.prompts import PromptObserver
from engines.lmdeploy.rebuild import Rebuild
from engines.lmdeploy.translate import generation_config, prompt_config, token_logprob
from engines.process.outputs import Outputs
from engines.sampler.grammar import GrammarCompiler, GrammarState, MaskWorker
from engines.text.request_check import check_prompt
from engines.types import (
    EmbeddingRequest,
    EngineState,
    EngineStats,
    FinishReason,
    GenerationRequest,
    Health,
    StructuredKind,
    TokenLogprob,
    TokenOutput,
)

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Answer:
    """A request that is being answered."""

    request: GenerationRequest
    outputs: Outputs
    arrival: float = field(default_factory=time.time)
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    announced: bool = False
    """The facts about the prompt have been told."""


class LmdeployCore:
    def __init__(self, config: LmdeployConfig) -> None:
        """Raises UnsupportedModel where this machine or the settings will not do."""
        self._config = config
        self._library = Library(config)
        self._state = EngineState.STOPPED
        self._capabilities: Capabilities | None = None
        self._eos_token_ids: tuple[int, ...] = ()
        self._grammars: GrammarCompiler | None = None
        self._masks: MaskWorker | None = None
        self._slots: HotSlots | Rebuild | None = None
        self._turns = AdapterTurns(config.max_loras, put=self._put, take=self._take)
        self._names: dict[str, str] = {}  # version -> what LMDeploy will know it by
        self._names_in: dict[int, str] = {}  # slot -> what it knows what lies there by
        self._loads = itertools.count()
        self._answers: dict[str, _Answer] = {}
        self._seeds = random.Random(config.seed)
        self._queries = 0
        self._hits = 0

    # ---- life

    async def start(self) -> None:
        self._state = EngineState.STARTING
        try:
            await self._build()
        except TuneserveError:
            self._state = EngineState.FAILED
            raise
        self._state = EngineState.READY

    async def _build(self) -> None:
        ours = self._config.backend == "pytorch" and self._config.tp == 1  # the model is in this process
        linears = adaptable_linears(self._library.folder) if self._config.backend == "pytorch" else {}
        self._eos_token_ids = load_eos_token_ids(self._library.folder)
        if linears:
            self._slots = await self._build_with_adapters(linears, reachable=ours)
        if not isinstance(self._slots, HotSlots):
            self._library.build({})
        kinds: frozenset[StructuredKind] = frozenset(get_args(StructuredKind))
        if ours:
            self._compile_grammars()
        observed = frozenset() if ours else frozenset((*EDITS, "prompt_logprobs"))
        lost = frozenset({"logprobs"}) if self._config.backend == "turbomind" else frozenset()
        self._capabilities = Capabilities(
            max_model_len=self._library.max_model_len,
            vocab_size=self._library.vocab_size,
            max_logprobs=min(self._config.max_logprobs, self._library.vocab_size),
            eos_token_ids=self._eos_token_ids,
            structured=kinds if self._grammars else frozenset(),
            unsupported=observed | lost | {"priority", "num_beams", "length_penalty"},
            embeddings=ours,
            adapters=None if self._slots is None else self._slots.support,
        )

    async def _build_with_adapters(
        self, linears: dict[str, tuple[int, int]], *, reachable: bool
    ) -> HotSlots | Rebuild | None:
        """Choose how adapters come and go, None where they cannot. Only with hot slots the engine is built then.

        `reachable`: the model will be in this process.
        """
        slots, rank = self._config.max_loras, self._config.max_lora_rank
        if reachable:
            hot = HotSlots(self._library, slots, rank)
            try:
                hot.build(linears)
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
        return Rebuild(self._library, slots, rank, linears)

    def _compile_grammars(self) -> None:
        tokenizer = load_tokenizer(self._library.folder)
        try:
            self._grammars = GrammarCompiler(tokenizer, self._library.vocab_size, self._eos_token_ids)
            self._masks = MaskWorker(self._grammars)
        except UnsupportedModel as error:
            log.warning("%s", error.message)

    async def stop(self) -> None:
        self._state = EngineState.STOPPED
        for answer in self._answers.values():
            answer.outputs.fail(EngineUnavailable("The engine is stopping."))
        await self._library.close()
        if isinstance(self._slots, Rebuild):
            self._slots.close()
        if self._masks is not None:
            self._masks.close()

    def health(self) -> Health:
        if self._state is EngineState.READY:
            death = self._library.death()
            if death is not None:
                return Health(EngineState.FAILED, death)
        return Health(self._state)

    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise EngineUnavailable("the engine is starting")
        return self._capabilities

    def stats(self) -> EngineStats:
        waits = sum(not answer.tasks for answer in self._answers.values())  # for an adapter, a grammar, a score
        metrics = self._library.metrics()
        return EngineStats(
            running=self._library.running - metrics.waiting_seqs,
            waiting=self._library.waiting + metrics.waiting_seqs + waits,
            kv_cache_usage=metrics.cache_usage,
            prefix_cache_queries=self._queries,
            prefix_cache_hits=self._hits,
            preemptions=self._library.preemptions,
            adapter_slots=self._turns.resident,
            adapter_loads=self._turns.loads,
            adapter_evictions=self._turns.evictions,
        )

    # ---- adapters

    async def load_adapter(self, version: str, folder: Path, *, pinned: bool = False) -> None:
        self._check_ready()
        if self._slots is None:
            raise UnsupportedParameter("this engine serves the base model only")
        if version not in self._turns.loaded:
            # Never the same name twice: it stands for its adapter in the prefix cache, which forgets nothing.
            self._names[version] = f"{version}#{next(self._loads)}"
        await self._turns.load(version, folder, pinned=pinned)

    async def unload_adapter(self, version: str) -> None:
        await self._turns.unload(version)
        self._names.pop(version, None)

    async def sleep(self) -> None:
        raise UnsupportedParameter("this engine cannot sleep")

    async def wake_up(self) -> None:
        raise UnsupportedParameter("this engine cannot sleep")

    async def _put(self, slot: int, version: str, folder: Path) -> None:
        assert self._slots is not None, "load_adapter has checked it"
        name = self._names[version]
        await self._slots.put(slot, name, folder)
        self._names_in[slot] = name

    async def _take(self, slot: int, version: str) -> None:
        assert self._slots is not None, "load_adapter has checked it"
        await self._slots.take(slot, self._names_in.pop(slot))

    # ---- requests

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        self._refuse(request)
        if request.request_id in self._answers:
            raise InvalidRequest(f"request id {request.request_id!r} is in use")
        answer = _Answer(request, Outputs(request.n))
        self._answers[request.request_id] = answer
        answering = asyncio.create_task(self._answer(answer))
        try:
            async for output in answer.outputs:
                yield output
        finally:
            del self._answers[request.request_id]
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    def finish(self, request_id: str, index: int) -> None:
        answer = self._answers.get(request_id)
        if answer is not None and answer.outputs.finish(index) and index in answer.tasks:
            answer.tasks[index].cancel()

    async def embed(self, request: EmbeddingRequest) -> list[float]:
        self._refuse(request)
        async with self._turns.use(request.adapter) as turn:
            observer = PromptObserver(request.prompt_ids, head=self._library.head)
            await self._compute_prompt(observer, request, turn)
        assert observer.last_hidden is not None, "the prompt was computed"
        embedding: list[float] = (observer.last_hidden / observer.last_hidden.norm()).tolist()
        return embedding

    async def _answer(self, answer: _Answer) -> None:
        request = answer.request
        try:
            grammar = await self._grammar(request)
            async with self._turns.use(request.adapter) as turn:
                count = request.sampling.prompt_logprobs
                if count is not None:
                    observer = PromptObserver(request.prompt_ids, top_logprobs=count, head=self._library.head)
                    await self._compute_prompt(observer, request, turn)
                    answer.prompt_logprobs = (None, *observer.logprobs)
                answer.tasks = {
                    index: asyncio.create_task(self._output(answer, index, self._name(turn), grammar))
                    for index in sorted(answer.outputs.open)
                }
                await _all_of(list(answer.tasks.values()), turn)
        except TuneserveError as error:
            answer.outputs.fail(error)
        except Exception:  # the library's, of any kind: whoever asked is to hear of it
            log.exception("a request failed")
            answer.outputs.fail(EngineFailure("the engine failed while it computed this request"))

    async def _grammar(self, request: GenerationRequest) -> GrammarState | None:
        if request.sampling.structured is None:
            return None
        assert self._grammars is not None, "capabilities tell what can be asked for"
        return await asyncio.to_thread(self._grammars.compile, request.sampling.structured)

    async def _compute_prompt(
        self, observer: PromptObserver, request: GenerationRequest | EmbeddingRequest, turn: Turn
    ) -> None:
        async def compute() -> None:
            with self._library.alias(self._name(turn)) as alone:
                async with aclosing(self._library.infer(request.prompt_ids, prompt_config(observer), alone)) as steps:
                    async for _ in steps:
                        pass

        await _all_of([asyncio.create_task(compute())], turn)
        if observer.failure is not None:
            raise observer.failure

    async def _output(self, answer: _Answer, index: int, adapter: str | None, grammar: GrammarState | None) -> None:
        """Compute one output, and queue what each step brings."""
        request, sampling = answer.request, answer.request.sampling
        edits = OutputEdits(request, self._eos_token_ids, self.capabilities().vocab_size, grammar, self._masks)
        room = min(sampling.max_new_tokens, self.capabilities().max_model_len - len(request.prompt_ids))
        if room == 0:
            self._tell(answer, TokenOutput(index=index, finish_reason=FinishReason.LENGTH), None)
            return
        seed = self._seeds.getrandbits(32) if sampling.seed is None else sampling.seed + index
        config = generation_config(
            sampling,
            seed=seed,
            max_new_tokens=room,
            eos_token_ids=self._eos_token_ids,
            vocab_size=self.capabilities().vocab_size,
            observer=edits if edits.needed else None,
        )
        count = 0
        async with aclosing(self._library.infer(request.prompt_ids, config, adapter)) as steps:
            async for step in steps:
                if edits.failure is not None:
                    raise edits.failure
                end = room if edits.complete_at is None else min(room, edits.complete_at)
                tokens = tuple(step.token_ids[: end - count])
                count += len(tokens)
                stop = tokens[-1] if tokens and tokens[-1] in edits.stops else None
                reason = None
                if stop is not None or count == edits.complete_at:
                    reason = FinishReason.STOP
                elif count == room or step.status is ResponseType.FINISH:
                    reason = FinishReason.LENGTH
                logprobs = None
                if sampling.logprobs is not None:
                    rows = zip(tokens, step.logprobs or (), strict=False)
                    logprobs = tuple(token_logprob(token, row, sampling.logprobs) for token, row in rows)
                output = TokenOutput(
                    index=index, token_ids=tokens, logprobs=logprobs, finish_reason=reason, stop_token_id=stop
                )
                if tokens or reason is not None:
                    self._tell(answer, output, step.req_metrics)
                if reason is not None:
                    return

    def _tell(self, answer: _Answer, output: TokenOutput, metrics: RequestMetrics | None) -> None:
        if output.index not in answer.outputs.open:
            return
        if not answer.announced:
            answer.announced = True
            cached = 0 if metrics is None else int(metrics.cached_tokens)
            self._queries += len(answer.request.prompt_ids)
            self._hits += cached
            output = replace(
                output,
                cached_tokens=cached,
                queue_seconds=_queue_seconds(answer.arrival, metrics),
                prompt_logprobs=answer.prompt_logprobs,
            )
        answer.outputs.put(output)

    # ---- what is refused

    def _check_ready(self) -> None:
        if self._state is not EngineState.READY:
            raise EngineUnavailable(f"the engine is {self._state}")

    def _refuse(self, request: GenerationRequest | EmbeddingRequest) -> None:
        self._check_ready()
        if request.adapter is not None and request.adapter not in self._turns.loaded:
            raise EngineFailure(f"the engine does not hold the adapter {request.adapter!r}")
        check_prompt(
            request.prompt_ids,
            vocab_size=self.capabilities().vocab_size,
            max_model_len=self.capabilities().max_model_len,
            more=1 if isinstance(request, EmbeddingRequest) else min(request.sampling.max_new_tokens, 1),
        )

    def _name(self, turn: Turn) -> str | None:
        return None if turn.slot is None else self._names_in[turn.slot]


async def _all_of(tasks: Sequence[asyncio.Task[Any]], turn: Turn) -> None:
    """Wait for all, or for the first error, which is raised. None is left running, also where the turn ends early."""

    def cancel() -> None:
        for task in tasks:
            task.cancel()

    if not tasks:
        return
    turn.end = cancel
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        if not task.cancelled():
            task.result()


def _queue_seconds(arrival: float, metrics: RequestMetrics | None) -> float:
    """From the arrival to the first step. Both are times of day: LMDeploy's are."""
    events = () if metrics is None else metrics.engine_events
    scheduled = [event.timestamp for event in events if event.type == EventType.SCHEDULED]
    return max(0.0, scheduled[0] - arrival) if scheduled else 0.0
